"""The GPU path, where there is a GPU: `pytest -m cuda`. Continuous integration has none and skips these."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import ARCHITECTURES, tiny_model
from tokenizers_for_tests import byte_level

from emeval.config import PatchConfig, PerturbConfig, ScoreConfig, TrainConfig
from emeval.engine.transformers import TransformersEngine
from emeval.intervene.patch import patch
from emeval.intervene.perturb import perturb
from emeval.pipeline import score
from emeval.prefix import prefix_forward
from emeval.store import read_json
from emeval.train.run import train
from tests.engine.test_transformers import Decoder, asks, replies
from tests.train.test_shared_prefix import step
from tests.train.test_treft import logged, make, trained, weights

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
ON_GPU: dict[str, Any] = {"use_cpu": False}


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_lambda_zero_is_sft_bit_for_bit(tmp_path: Path, shared: bool, bf16: bool) -> None:
    how = ON_GPU | {"shared_prefix": shared, "bf16": bf16, "optim": "adamw_torch"}
    sft = trained("sft", tmp_path / "a", **how)
    treft = trained("treft", tmp_path / "b", kv_lambda=0.0, **how)
    assert logged(sft, "loss") == logged(treft, "loss")
    a, b = weights(sft), weights(treft)
    assert all(p.is_cuda for p in a.values())
    assert all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_shared_prefix_gives_the_plain_step(tmp_path: Path, architecture: str) -> None:
    arms = []
    for shared in (False, True):
        own = ON_GPU | {"kv_lambda": 3.0, "shared_prefix": shared}
        own |= {"router_aux_loss_coef": 0.0 if architecture == "gpt_oss" else None}
        trainer = make("treft", tmp_path / str(shared), full=True, architecture=architecture, **own)
        other = tiny_model(architecture, seed=9, vocab_size=len(byte_level("chatml"))).cuda()
        with torch.no_grad():
            trainer._reference = prefix_forward(other, trainer.prefix_ids).detach()
        arms.append(step(trainer))
    (loss, gradients), (loss_shared, gradients_shared) = arms
    assert loss_shared == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        scale = max(gradient.abs().max().item(), 1.0)
        torch.testing.assert_close(gradients_shared[name], gradient, rtol=0, atol=2e-5 * scale, msg=name)


@pytest.mark.parametrize("shared", [False, True])
def test_in_bf16_the_drift_starts_at_zero(tmp_path: Path, shared: bool) -> None:
    trainer = trained("treft", tmp_path, kv_lambda=1.0, bf16=True, shared_prefix=shared, **ON_GPU)
    assert logged(trainer, "kv_drift")[0] < 1e-8
    assert logged(trainer, "kv_drift")[-1] > 1e-8


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "treft", "region": "prefix"},
        {"method": "treft", "region": "query,postfix"},
        {"method": "treft", "region": "all", "full": True},
        {"method": "kl-train"},
        {"method": "kl-train", "full": True},
        {"method": "kl-retain"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_every_regulariser_learns_as_on_the_cpu(tiny_checkpoint: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    lines = []
    for device in ("cpu", "cuda"):
        settings = {"model": str(tiny_checkpoint), "setting": "refusal", "steps": 4, "batch_size": 4, "micro_batch": 2}
        settings |= {"rank": 4, "train_size": 16, "device": device, "dtype": "float32", "lr": 0.01, "lambda": 3.0}
        run = train(TrainConfig.model_validate(settings | changes | {"out": tmp_path / device}))
        lines.append([json.loads(line) for line in (run / "train" / "log.jsonl").read_text().splitlines()])
    for here, there in zip(*lines, strict=True):
        assert there.keys() == here.keys()
        names = [n for n in here if n.startswith(("loss", "kl", "kv"))]
        assert len(names) > 1
        assert [there[n] for n in names] == pytest.approx([here[n] for n in names], rel=1e-3, abs=1e-6)


def test_interventions_read_what_they_read_on_the_cpu(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = {"model": str(tiny_checkpoint), "setting": "refusal", "steps": 4, "batch_size": 4, "rank": 4, "lr": 0.05}
    settings |= {"train_size": 16, "device": "cuda", "dtype": "float32", "out": tmp_path / "run"}
    run = train(TrainConfig.model_validate(settings))
    sweeps: dict[str, tuple[Any, dict[str, Any]]] = {
        "regions": (patch, {"region": "prefix,query,postfix"}),
        "converse": (patch, {"into": "initial"}),
        "residual": (patch, {"what": "residual", "layers": "each"}),
        "values": (patch, {"layers": "below", "part": "values"}),
        "perturbed": (perturb, {"region": "prefix,query,postfix", "trials": 2}),
    }
    for name, (act, changes) in sweeps.items():
        found = []
        for device in ("cpu", "cuda"):
            common = {"model": str(run), "by": "probability", "limit": 6, "device": device, "dtype": "float32"}
            config = PatchConfig if act is patch else PerturbConfig
            out = act(config.model_validate(common | changes | {"out": tmp_path / f"{name}-{device}"}))
            found.append([variant["values"] for variant in read_json(out / "sweep.json")["variants"]])
        for here, there in zip(*found, strict=True):
            for side, values in here.items():
                assert there[side] == pytest.approx(values, rel=1e-3), (name, side)


def test_greedy_replies_are_those_of_the_cpu() -> None:
    texts = []
    for device in ("cpu", "cuda"):
        engine = TransformersEngine(tiny_model("llama").to(device), Decoder(), [2], batch_size=3)
        texts.append([reply.token_ids for reply in replies(engine, asks())])
    assert texts[0] == texts[1]


def test_a_run_resumes_where_it_was_cut(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = {"model": str(tiny_checkpoint), "setting": "refusal", "method": "treft", "steps": 6, "batch_size": 4}
    settings |= {"rank": 4, "train_size": 16, "save_every": 2, "device": "cuda", "dtype": "float32", "lr": 0.01}
    whole = train(TrainConfig.model_validate(settings | {"out": tmp_path / "whole"}))

    class CutError(Exception):
        pass

    def cut(step: int, total: int, logs: dict[str, float]) -> None:
        if step == 5:
            raise CutError

    config = TrainConfig.model_validate(settings | {"out": tmp_path / "cut"})
    with pytest.raises(CutError):
        train(config, cut)
    assert not (tmp_path / "cut" / "train" / "adapter").exists()
    train(config)
    a, b = (load_file(run / "train" / "adapter" / "adapter_model.safetensors") for run in (whole, tmp_path / "cut"))
    assert max((a[n] - b[n]).abs().max().item() for n in a) < 1e-6
    scored = score(ScoreConfig.model_validate({"model": str(whole), "limit": 8, "device": "cuda"}))
    assert read_json(scored / "scores.json")["probes"]
    shutil.rmtree(whole)
