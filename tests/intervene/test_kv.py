"""Prefix patching: base into base and tuned into tuned change no logit; the patch is the initial model's prefix."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from tiny import ARCHITECTURES, VOCAB, tiny_model

from emeval.errors import InputError
from emeval.intervene.kv import mixed, patched_prefix
from emeval.prefix import as_cache, kv_drift, prefix_forward
from tests.intervene.pairs import P, adapted


def rows() -> tuple[list[int], torch.Tensor]:
    ids = torch.randint(3, VOCAB, (3, 20), generator=torch.Generator().manual_seed(2))
    ids[:, :P] = ids[0, :P]
    return ids[0, :P].tolist(), ids


def patched_logits(model: PeftModel, source: str) -> torch.Tensor:
    prefix, ids = rows()
    cache = as_cache(patched_prefix(model, prefix, source), len(ids), model)  # type: ignore[arg-type]
    with torch.inference_mode():
        return model(input_ids=ids[:, P:], attention_mask=torch.ones_like(ids), past_key_values=cache).logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tuned_into_tuned_and_base_into_base_change_no_logit(architecture: str) -> None:
    model, (_, ids) = adapted(architecture), rows()
    with torch.inference_mode():
        torch.testing.assert_close(
            patched_logits(model, "tuned"), model(input_ids=ids).logits[:, P:], rtol=0, atol=5e-5
        )
        with model.disable_adapter():
            base = model(input_ids=ids).logits[:, P:]
            torch.testing.assert_close(patched_logits(model, "initial"), base, rtol=0, atol=5e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_patch_is_the_initial_models_prefix_and_moves_the_tuned_model(architecture: str) -> None:
    model, (prefix, ids) = adapted(architecture), rows()
    patch = patched_prefix(model, prefix, "initial")
    with torch.inference_mode():
        assert kv_drift(*patch, *prefix_forward(tiny_model(architecture), prefix)).item() == 0.0
        assert kv_drift(*patch, *prefix_forward(model, prefix)).item() > 1e-3
        moved = patched_logits(model, "initial") - model(input_ids=ids).logits[:, P:]
    assert moved.abs().max() > 1e-2


def test_a_model_without_an_adapter_does_not_know_its_initial_self() -> None:
    with pytest.raises(InputError, match="does not hold its initial model"):
        patched_prefix(tiny_model("llama"), rows()[0], "initial")


@pytest.mark.parametrize("part", ["both", "keys", "values"])
def test_what_is_mixed_in_is_there_and_nothing_else(part: str) -> None:
    model, (prefix, _) = adapted("llama"), rows()
    tuned, initial = patched_prefix(model, prefix, "tuned"), patched_prefix(model, prefix, "initial")
    found = mixed(tuned, initial, {1}, {0, 3}, part)  # type: ignore[arg-type]
    for kind in ("keys", "values"):
        for layer in range(3):
            for token in range(P):
                theirs = layer == 1 and token in (0, 3) and part in ("both", kind)
                wanted = getattr(initial if theirs else tuned, kind)[layer][:, :, token]
                assert torch.equal(getattr(found, kind)[layer][:, :, token], wanted)
    assert not torch.equal(tuned.keys[1][:, :, 0], initial.keys[1][:, :, 0]), "or it shows nothing"
    every = range(3), range(P)
    for a, b in zip(mixed(tuned, initial, *every).keys, initial.keys, strict=True):
        assert torch.equal(a, b)
