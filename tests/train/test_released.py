"""`drift="released"`: what the authors' code computes, against a naive rewriting; logged under a name of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ARCHITECTURES

from emeval.errors import InputError
from tests.train.test_regions import gradients, stir
from tests.train.test_treft import logged, make, rows, trained

WAYS: dict[str, dict[str, Any]] = {
    "shared prefix": {},
    "captured": {"shared_prefix": False},
    "checkpointing": {"gradient_checkpointing": True},
    "apart": {"shared_prefix": False, "clip_apart": True},
}


def projected(model: Any, ids: list[int]) -> list[torch.Tensor]:
    """Hidden states before each block, as transformers hands them out, through the block's projections."""
    states = model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
    blocks = model.get_base_model().model.layers
    return [
        getattr(block.self_attn, name)(state)[0]
        for block, state in zip(blocks, states[:-1], strict=True)
        for name in ("k_proj", "v_proj")
    ]


def naive(model: Any, prefix: list[int]) -> torch.Tensor:
    now = projected(model, prefix)
    with torch.no_grad(), model.disable_adapter():
        start = projected(model, prefix)
    terms = [(n - s).square().sum(-1) / s.square().sum(-1) for n, s in zip(now, start, strict=True)]
    return 2 * torch.stack([t.mean() for t in terms]).mean()  # keys plus values: two terms a layer


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "phi3"])
@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_penalty_and_gradients_are_the_naive_ones(tmp_path: Path, architecture: str, way: dict[str, Any]) -> None:
    own = {"router_aux_loss_coef": 0.0} if architecture == "gpt_oss" else {}
    settings = {"kv_lambda": 2.0, "drift": "released", **way, **own}
    trainer: Any = make("treft", tmp_path, architecture=architecture, **settings)
    stir(trainer.model)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer.data_collator(list(rows()))
    count = (batch["labels"][:, 1:] != -100).sum()
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
    expected = naive(trainer.model, trainer.prefix_ids)
    assert trainer._metrics["train"]["released_drift"] == [pytest.approx(expected.item(), rel=1e-5)]
    assert expected > 1e-3
    trainer.model.zero_grad()
    loss.backward()
    if way.get("clip_apart"):
        names = [n for n, p in trainer.model.named_parameters() if p.requires_grad]
        found = dict(zip(names, trainer._apart, strict=True))
    else:
        found = gradients(trainer.model)
    trainer.model.zero_grad()
    (2.0 * naive(trainer.model, trainer.prefix_ids)).backward()
    if not way.get("clip_apart"):
        trainer.args.kv_lambda = 0.0
        trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count).backward()
    for name, gradient in gradients(trainer.model).items():
        scale = max(gradient.abs().max().item(), 1.0)
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-5 * scale, msg=name)


def test_the_two_quantities_are_logged_under_names_of_their_own(tmp_path: Path) -> None:
    released = trained("treft", tmp_path / "a", kv_lambda=3.0, drift="released")
    assert logged(released, "released_drift")[0] < 1e-10 < logged(released, "released_drift")[-1]
    assert not logged(released, "kv_drift")
    kv = trained("treft", tmp_path / "b", kv_lambda=3.0)
    assert not logged(kv, "released_drift")
    assert logged(kv, "kv_drift")[-1] != pytest.approx(logged(released, "released_drift")[-1], rel=1e-2)


def test_lambda_zero_is_sft_bit_for_bit(tmp_path: Path) -> None:
    assert logged(trained("sft", tmp_path / "a"), "loss") == logged(
        trained("treft", tmp_path / "b", kv_lambda=0.0, drift="released"), "loss"
    )


def test_a_model_with_fused_projections_and_another_word_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no key and value projections of their own"):
        make("treft", tmp_path, architecture="phi3", drift="released")
    with pytest.raises(ValueError, match="drift is 'other'"):
        make("treft", tmp_path, drift="other")
