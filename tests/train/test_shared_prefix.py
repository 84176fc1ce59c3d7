"""The shared prefix: one prefix forward for all rows gives the plain step's loss and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ARCHITECTURES, tiny_model
from tokenizers_for_tests import byte_level

from emeval.chat import Renderer
from emeval.errors import InputError
from emeval.train.methods.shared_prefix import SharedPrefixTrainer
from tests.train.test_treft import logged, make, rows, trained, weights


def step(trainer: SharedPrefixTrainer) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one batch, padding and all, through the trainer's own `compute_loss`."""
    batch = trainer._prepare_inputs(trainer.data_collator([rows()[i] for i in range(8)]))
    assert (batch["attention_mask"] == 0).any(), "without padding it shows less"
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=(batch["labels"][:, 1:] != -100).sum())
    trainer.model.zero_grad()
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["sft", "treft"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_are_those_of_the_plain_step(tmp_path: Path, architecture: str, kind: str) -> None:
    arms = []
    for shared in (False, True):
        own: dict[str, Any] = {"kv_lambda": 3.0} if kind == "treft" else {}
        own |= {"shared_prefix": shared, "router_aux_loss_coef": 0.0 if architecture == "gpt_oss" else None}
        trainer = make(kind, tmp_path / str(shared), full=True, architecture=architecture, **own)
        assert (trainer.not_shared is None) == shared
        if kind == "treft":  # a reference that the model is away from, so that the penalty has a gradient
            other = tiny_model(architecture, seed=9, vocab_size=len(byte_level("chatml")))
            from emeval.prefix import prefix_forward

            with torch.no_grad():
                trainer._reference = prefix_forward(other, trainer.prefix_ids).detach()
        arms.append(step(trainer))
    (loss, gradients), (loss_shared, gradients_shared) = arms
    assert loss_shared == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == gradients_shared.keys()
    for name, gradient in gradients.items():
        scale = max(gradient.abs().max().item(), 1.0)
        torch.testing.assert_close(gradients_shared[name], gradient, rtol=0, atol=1e-5 * scale, msg=name)


def test_bf16_agrees_within_its_own_rounding(tmp_path: Path) -> None:
    plain = trained("sft", tmp_path / "a", bf16=True, shared_prefix=False)
    shared = trained("sft", tmp_path / "b", bf16=True, shared_prefix=True)
    assert logged(shared, "loss") == pytest.approx(logged(plain, "loss"), rel=1e-2)


def test_training_ends_where_the_plain_one_does(tmp_path: Path) -> None:
    plain = trained("sft", tmp_path / "a", shared_prefix=False)
    shared = trained("sft", tmp_path / "b", shared_prefix=True)
    a, b = weights(plain), weights(shared)
    assert all((a[n] - b[n]).abs().max() < 1e-5 for n in a)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shared_prefix": False}, "switched off"),
        ({"gradient_checkpointing": True}, "gradient checkpointing"),
        ({"kv_prefix_ids": []}, "no prefix"),
    ],
)
def test_where_it_cannot_be_shared_the_plain_step_runs_and_says_why(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    trainer = trained("sft", tmp_path / "a", **changes)
    assert reason in str(trainer.not_shared)
    assert logged(trainer, "loss") == pytest.approx(logged(trained("trl", tmp_path / "b"), "loss"), rel=1e-6)


def test_on_a_gpu_it_is_shared_where_that_saves_many_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few, many, asked = (
        make("sft", tmp_path, per_device_train_batch_size=rows, shared_prefix=wanted)
        for rows, wanted in ((4, None), (512, None), (4, True))
    )
    assert {trainer._why_not_shared() for trainer in (few, many, asked)} == {None}
    monkeypatch.setattr("emeval.train.methods.shared_prefix._device", lambda args: "cuda")
    assert few._why_not_shared() == "too few tokens a forward for a GPU"
    assert many._why_not_shared() is None and asked._why_not_shared() is None


def test_a_router_with_a_balance_loss_keeps_the_plain_step(tmp_path: Path) -> None:
    trainer = make("sft", tmp_path, architecture="gpt_oss")
    assert "balance loss" in str(trainer.not_shared)


def test_other_attention_kernels_keep_the_plain_step(tmp_path: Path) -> None:
    trainer = make("sft", tmp_path)
    trainer.model.base_model.model.config._attn_implementation = "flash_attention_2"
    assert trainer._why_not_shared() == "attention kernel flash_attention_2"


def test_a_row_with_another_prefix_is_named(tmp_path: Path) -> None:
    trainer = make("sft", tmp_path)
    wrong = [dict(rows()[i]) for i in range(3)]
    wrong[2]["input_ids"] = [99, *wrong[2]["input_ids"][1:]]
    with pytest.raises(InputError, match="row 2 of a training batch"):
        trainer.data_collator(wrong)
    short = [{"input_ids": list(Renderer(byte_level("chatml")).prefix_ids()), "labels": []}]
    short[0]["labels"] = [-100] * len(short[0]["input_ids"])
    with pytest.raises(InputError, match="does not start with"):
        trainer.data_collator(short)
