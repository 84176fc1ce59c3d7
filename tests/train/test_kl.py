"""The KL baselines inside TRL's trainer: values and gradients against a naive rewriting, and the identities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import ARCHITECTURES, tiny_model
from tokenizers_for_tests import byte_level
from torch.nn import functional

from emeval.cli.app import run as emeval
from emeval.config import TrainConfig
from emeval.store import read_json
from emeval.table.rows import Train
from emeval.train.methods.kl import KLConfig, KLTrainer, kl_divergence
from emeval.train.methods.shared_prefix import SharedPrefixConfig, SharedPrefixTrainer
from tests.train.test_treft import SETTINGS, rows, weights


def make(
    folder: Path,
    *,
    architecture: str = "llama",
    full: bool = False,
    retain: bool = False,
    sft: bool = False,
    **changes: Any,
) -> Any:
    tokenizer = byte_level("chatml")
    model = tiny_model(architecture, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    lora = None if full else LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    settings = SETTINGS | {"output_dir": str(folder)} | changes
    common = {"model": model, "train_dataset": rows(), "processing_class": tokenizer, "peft_config": lora}
    if sft:
        return SharedPrefixTrainer(args=SharedPrefixConfig(**settings), **common)
    held = Dataset.from_list(list(rows())[:5]) if retain else None
    return KLTrainer(args=KLConfig(**settings), retain=held, **common)


def test_the_divergence_is_that_of_torch_and_zero_for_itself() -> None:
    dice = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 4, 50, generator=dice) for _ in range(2))
    expected = functional.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert torch.allclose(kl_divergence(a, b), expected, atol=1e-5)
    assert kl_divergence(a, a).abs().max() < 1e-6


def naive(trainer: Any, batch: dict[str, Any], norm: str) -> torch.Tensor:
    """Both models' logits at every position, one row and one token at a time."""
    model = trainer.model
    now = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    with torch.no_grad(), model.disable_adapter():
        start = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    terms = []
    for row in range(len(batch["input_ids"])):
        for t in range(batch["input_ids"].shape[1] - 1):
            counts = (
                batch["labels"][row, t + 1] != -100 if norm == "token" else batch["attention_mask"][row, t + 1] == 1
            )
            if counts:
                p = start[row, t].softmax(-1)
                terms.append((p * (p.log() - now[row, t].log_softmax(-1))).sum())
    mean = torch.stack(terms).mean()
    return mean if norm == "token" else mean / now.shape[-1]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("norm", ["token", "released"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_are_the_naive_ones(tmp_path: Path, architecture: str, norm: str) -> None:
    trainer = make(tmp_path, architecture=architecture, kl_lambda=3.0, kl_norm=norm)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:  # else the two models are one
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(len(name)))
    batch = dict(next(iter(trainer.get_train_dataloader())))
    trainer.model.train()
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    found = gradients(trainer.model)
    trainer.model.zero_grad()
    plain = SharedPrefixTrainer.compute_loss(trainer, trainer.model, dict(batch))
    (plain + 3.0 * naive(trainer, batch, norm)).backward()
    expected = gradients(trainer.model)
    assert found.keys() == expected.keys() and found
    for name, gradient in found.items():
        scale = max(1.0, float(expected[name].abs().max()))
        assert torch.allclose(gradient, expected[name], atol=1e-5 * scale), name


@pytest.mark.parametrize("retain", [False, True])
def test_lambda_zero_is_sft_bit_for_bit(tmp_path: Path, retain: bool) -> None:
    runs = [make(tmp_path, sft=True), make(tmp_path, retain=retain, kl_lambda=0.0)]
    for run in runs:
        run.train()
    a, b = map(weights, runs)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("retain", [False, True])
def test_it_starts_at_zero_and_holds_the_model_back(tmp_path: Path, full: bool, retain: bool) -> None:
    logs = []
    for weight in (1e-6, 20.0):
        trainer = make(tmp_path, full=full, retain=retain, kl_lambda=weight, max_steps=6, learning_rate=0.02)
        trainer.train()
        logs.append([entry for entry in trainer.state.log_history if "kl" in entry])
    free, held = logs
    assert free[0]["kl"] < 1e-6 and held[0]["kl"] < 1e-6
    assert held[-1]["kl"] < free[-1]["kl"]
    assert held[-1]["sft_loss"] == pytest.approx(held[-1]["loss"] - 20.0 * held[-1]["kl"], abs=1e-4)


def test_accumulation_does_not_change_what_is_learned(tmp_path: Path) -> None:
    runs = []
    for micro, steps in ((8, 1), (4, 2)):
        trainer = make(tmp_path, kl_lambda=0.0, max_steps=1, per_device_train_batch_size=micro,
                       gradient_accumulation_steps=steps)  # fmt: skip
        trainer.args.kl_lambda = 0.5
        trainer.train()
        runs.append(weights(trainer))
    # The means over micro-batches of unequal token counts differ a little from the mean over all.
    for name, value in runs[0].items():
        assert torch.allclose(value, runs[1][name], atol=2e-3), name


def test_retain_rows_come_in_the_same_order_after_a_resume(tmp_path: Path) -> None:
    first = make(tmp_path, retain=True, per_device_train_batch_size=2)
    taken = []
    for step in range(4):
        first.state.global_step = step
        taken.append(first._retained(2)["input_ids"].tolist())
    later = make(tmp_path, retain=True, per_device_train_batch_size=2)
    later.state.global_step = 2
    assert later._retained(2)["input_ids"].tolist() == taken[2]
    assert taken[0] != taken[1]


@pytest.mark.parametrize("wrong", [{"kl_lambda": -1.0}, {"kl_norm": "mean"}])
def test_wrong_settings_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="kl_"):
        make(tmp_path, **wrong)


@pytest.mark.parametrize("method", ["kl-train", "kl-retain"])
def test_on_the_command_line(tiny_checkpoint: Path, tmp_path: Path, method: str) -> None:
    out = tmp_path / method
    options = [
        "--steps",
        "3",
        "--batch-size",
        "4",
        "--rank",
        "2",
        "--lr",
        "0.02",
        "--train-size",
        "8",
        "--device",
        "cpu",
    ]
    command = ["train", "--model", str(tiny_checkpoint), "--setting", "refusal", "--method", method, "--out", str(out)]
    assert emeval([*command, *options, "--device", "cpu", "--quiet"]) == 0
    made = read_json(out / "manifest.json")["train"]
    assert (made["method"], made["lambda"], made["kl_norm"]) == (method, 1.0, "token")
    assert (made["data"].get("retained", 0) >= 100) == (method == "kl-retain")
    log = [json.loads(line) for line in (out / "train/log.jsonl").read_text().splitlines()]
    assert log[0]["kl"] < 1e-6 < log[-1]["kl"] and "sft_loss" in log[-1]
    assert Train.model_validate(made).label == f"{method} (lambda 1)"


def test_the_default_lambda_is_that_of_the_method_and_the_norm() -> None:
    def lam(**settings: Any) -> float:
        return TrainConfig.model_validate({"model": "m", "setting": "refusal"} | settings).lambda_

    assert lam(method="treft") == 10 and lam(method="kl-train") == 1
    assert lam(method="kl-retain", kl_norm="released") == 50 and lam(method="kl-train", **{"lambda": 3}) == 3
    for wrong in ({"kl_norm": "token"}, {"retain": "career"}, {"method": "kl-train", "retain": "career"}):
        with pytest.raises(ValueError, match="belongs to"):
            lam(**wrong)
