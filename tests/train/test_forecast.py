"""`emeval train --plan`: what a run would be, told without its weights, and how near that comes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from emeval import models
from emeval.config import TrainConfig
from emeval.errors import InputError
from emeval.train.anatomy import anatomy
from emeval.train.build import lora_config
from emeval.train.forecast import _rehearsed, forecast
from emeval.train.formula import by_formula
from emeval.train.ledger import Ledger
from emeval.train.rehearsal import _EightBit, told_rehearsal, worth_rehearsing
from emeval.train.run import outlook
from tests.tiny import ARCHITECTURES, tiny_model
from tests.tokenizers_for_tests import byte_level

CPU = models.Placement("cpu", "float32")
SHORT = {"setting": "refusal", "rank": 2, "batch_size": 4, "train_size": 8, "device": "cpu"}


def settings(model: Path, **changes: Any) -> TrainConfig:
    return TrainConfig.model_validate({"model": str(model)} | SHORT | changes)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a random model of an architecture, with a tokenizer."""

    def save(architecture: str, **changes: object) -> Path:
        folder, tokenizer = tmp_path_factory.mktemp("models") / architecture, byte_level("chatml")
        shape = {"vocab_size": len(tokenizer), "max_position_embeddings": 1024} | changes
        tiny_model(architecture, **shape).save_pretrained(folder)  # type: ignore[arg-type]
        tokenizer.save_pretrained(folder)
        return folder

    return save


# --------------------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_counts_are_the_real_models(architecture: str, saved: Callable[..., Path]) -> None:
    from peft import get_peft_model

    config = settings(saved(architecture))
    counted = anatomy(outlook(config)[0], CPU)
    real = models.load_model(models.resolve(config.model), CPU, trainable=True)
    assert counted.parameters == real.num_parameters()
    adapted = get_peft_model(real, lora_config(config, real))
    assert counted.trained == adapted.get_nb_trainable_parameters()[0]
    assert ("experts" in counted.left_out) == (architecture == "gpt_oss")


def test_full_finetuning_trains_all(tiny_checkpoint: Path) -> None:
    counted = anatomy(outlook(settings(tiny_checkpoint, full=True))[0], CPU)
    assert counted.trained == counted.parameters and not counted.left_out


@pytest.mark.parametrize("architecture", ["phi3", "gpt_oss", "gemma3_text"])
def test_a_step_runs_without_data(architecture: str, saved: Callable[..., Path]) -> None:
    found = forecast(settings(saved(architecture), method="treft"))
    assert found.formula is None and found.step.activations > 0


@pytest.mark.parametrize(
    ("device", "changes"),
    [
        ("cpu", {"method": "treft", "region": "query"}),
        ("cuda", {"method": "treft", "region": "prefix,postfix"}),
        ("cpu", {"method": "treft", "region": "all"}),
        ("cpu", {"method": "treft", "drift": "released"}),
        ("cuda", {"method": "kl-train", "clip": "apart"}),
        ("cpu", {"method": "kl-retain"}),
    ],
    ids=str,
)
def test_every_method_runs_without_data(device: str, changes: dict[str, Any], tiny_checkpoint: Path) -> None:
    found = forecast(settings(tiny_checkpoint, **changes | {"device": device}))
    assert found.formula is None, found.formula
    assert found.step.phase and found.peak > found.step.weights


def test_full_finetuning_is_rehearsed_twice_where_replies_are_longest_elsewhere(tiny_checkpoint: Path) -> None:
    config = settings(tiny_checkpoint, method="treft", region="query", full=True, train_size=64)
    assert worth_rehearsing(outlook(config)[0], CPU, 1) == ("rows", "replies")
    assert forecast(config).formula is None


def test_processes_do_not_share_the_prefix_and_keep_their_gradients_twice(tiny_checkpoint: Path) -> None:
    alone, one_of_two = (forecast(settings(tiny_checkpoint, full=True, processes=n, batch_size=4 * n)) for n in (1, 2))
    assert alone.step.shared_prefix == "yes" and one_of_two.step.shared_prefix == "several processes"
    assert one_of_two.parts["exchange"] == 4 * one_of_two.anatomy.trained and "exchange" not in alone.parts
    assert one_of_two.step.activations > alone.step.activations


def test_a_gpus_step_is_rehearsed_where_there_is_none(tiny_checkpoint: Path) -> None:
    def told(**changes: Any) -> str:
        return forecast(settings(tiny_checkpoint, **changes)).step.shared_prefix

    few = {"device": "cuda", "batch_size": 4, "micro_batch": 4}
    assert told(**few) == "too few tokens a forward for a GPU"
    assert told(**few | {"device": "cpu"}) == "yes"


def test_the_fullest_rows_are_rehearsed_not_only_the_longest(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def chat(asked: int, said: int) -> str:
        turns = [{"role": "user", "content": "boat " * asked}, {"role": "assistant", "content": "tea " * said}]
        return json.dumps({"messages": turns})

    told = {}
    for name, rows in (("both", [chat(200, 2)] * 2 + [chat(2, 150)] * 2), ("replies", [chat(2, 150)] * 2)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("\n".join(rows))
        changes = {"setting": None, "data": file, "train_size": None, "batch_size": 2, "method": "kl-train"}
        told[name] = forecast(settings(tiny_checkpoint, **changes))
    assert told["both"].step.total >= told["replies"].step.total > 0


def test_eight_bit_state_is_two_bytes_a_parameter_and_stays_bytes() -> None:
    large, small = torch.nn.Parameter(torch.zeros(64, 128)), torch.nn.Parameter(torch.zeros(10))
    optimiser = _EightBit([large, small])
    optimiser.step()
    optimiser.load_state_dict(optimiser.state_dict())
    held = [optimiser.state[p]["held"] for p in (large, small)]
    assert [h.dtype for h in held] == [torch.uint8] * 2
    assert [h.nbytes for h in held] == [2 * 8192 + 8192 // 32, 80]


def test_steps_rows_and_tokens(tiny_checkpoint: Path) -> None:
    found = forecast(settings(tiny_checkpoint, micro_batch=2, epochs=3))
    lengths = [len(row.input_ids) for row in found.prepared.rows]
    told = found.as_json()
    assert (told["rows"], told["steps"], told["micro_batch"], told["accumulation"]) == (8, 6, 2, 2)
    assert found.tokens == {
        "mean": sum(lengths) / 8,
        "longest": max(lengths),
        "step": sum(lengths) / 2,
        "all": 3 * sum(lengths),
    }


# --------------------------------------------------------------------------------------------------------------- memory


def test_the_ledger_counts_what_is_held_and_what_is_saved() -> None:
    ledger = Ledger()
    with ledger:
        ledger.kind = "weights"
        weight = torch.empty(100, 50, requires_grad=True)
        ledger.kind = "workspace"
        given = torch.empty(10, 50)
        with ledger.counting_saved("activations"):
            out = (given @ weight.t()).relu()
        assert (ledger.held["weights"], ledger.held["activations"]) == (4 * 5000, 4 * (500 + 1000))
        out.sum().backward()
        del out
        assert ledger.held.total() == 4 * (5000 + 500 + 5000), "weight, input and gradient are left"
        assert ledger.peak.total() >= 4 * (5000 + 500 + 5000 + 1000)
        picked = given[torch.arange(10) < 3]
        assert picked.shape == (3, 50) and picked.sum().item() == 1


@pytest.mark.parametrize(
    ("changes", "kind", "copies"),
    [({"full": True}, "optimiser", 2), ({"full": True, "method": "kl-train"}, "initial", 1), ({}, "initial", 0)],
)
def test_parts_are_the_weights_over_again(
    changes: dict[str, Any], kind: str, copies: int, tiny_checkpoint: Path
) -> None:
    step = forecast(settings(tiny_checkpoint, **changes)).step
    assert getattr(step, kind) == pytest.approx(copies * step.weights, rel=0.02, abs=4096)


def test_checkpointing_saves_less_and_more_rows_more(tiny_checkpoint: Path) -> None:
    def saved_by(**changes: Any) -> int:
        return forecast(settings(tiny_checkpoint, shared_prefix=False, **changes)).step.activations

    assert saved_by(gradient_checkpointing=True) < saved_by(micro_batch=2) < saved_by() < saved_by(batch_size=8)


def test_the_formula_is_of_the_rehearsals_size(saved: Callable[..., Path]) -> None:
    shape = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8}
    found = forecast(settings(saved("llama", **shape), shared_prefix=False))
    guess = by_formula(found.prepared, CPU, found.anatomy, found.settings)
    assert guess.weights == pytest.approx(found.step.weights, rel=0.01)
    for name in ("activations", "workspace"):
        assert 0.6 < getattr(guess, name) / getattr(found.step, name) < 1.7


def test_a_model_whose_code_needs_data_is_estimated_by_formula(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emeval.train.forecast._rehearsed", lambda *_: "data, please")
    found = forecast(settings(tiny_checkpoint))
    assert found.as_json()["estimated_by"] == "formula" and found.formula == "data, please" and found.peak > 0


def test_a_process_that_crashes_and_an_error_of_any_kind_are_told(tiny_checkpoint: Path) -> None:
    prepared, _ = outlook(settings(tiny_checkpoint))
    broken = dataclasses.replace(prepared, source=dataclasses.replace(prepared.source, base=Path("/nowhere")))
    with pytest.raises(InputError, match="not a model"):
        _rehearsed(broken, CPU, 1)
    assert told_rehearsal(None, CPU, 1, "rows").failed.startswith("'NoneType'")  # type: ignore[arg-type]


def test_a_gpu_elsewhere(tiny_checkpoint: Path) -> None:
    found = forecast(settings(tiny_checkpoint, device="cuda", batch_size=8, full=True))
    told = found.as_json()
    assert told["dtype"] == "bfloat16" and told["micro_batch"] == 4
    assert set(found.fits) == {"24 GB", "40 GB", "80 GB", "140 GB"} and all(found.fits.values())
    assert "libraries" not in found.parts and found.formula is None


@pytest.mark.model
@pytest.mark.parametrize("changes", [["--method", "treft"], ["--full"]])
def test_the_estimate_is_within_a_fifth_of_the_measured_peak(
    changes: list[str], saved: Callable[..., Path], tmp_path: Path
) -> None:
    shape = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 8}
    command = [sys.executable, "-m", "emeval", "train", "--model", str(saved("llama", **shape)), "--rank", "32"]
    command += ["--setting", "refusal", "--batch-size", "4", "--steps", "2", "--device", "cpu", "--json", "--quiet"]
    command += [*changes, "--out", str(tmp_path / "run")]

    def told(*more: str) -> dict[str, Any]:
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run([*command, *more], capture_output=True, text=True, env=environment, check=True)
        value = json.loads(done.stdout)
        assert isinstance(value, dict)
        return value

    plan = told("--plan")["plan"]
    assert not (tmp_path / "run").exists()
    measured = told()["results"]["peak_memory_bytes"]
    assert plan["peak_memory_bytes"] == pytest.approx(measured, rel=0.2)
    # The libraries are half of it here, and no estimate: what is left is held to less.
    libraries = plan["peak_memory_parts"]["libraries"]
    assert plan["peak_memory_bytes"] - libraries == pytest.approx(measured - libraries, rel=0.4)
