"""Prefix patching: base into base and tuned into tuned change no logit; the patch is the initial model's prefix."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import ARCHITECTURES, VOCAB, tiny_model

from emeval.errors import InputError
from emeval.intervene.kv import patched_prefix
from emeval.prefix import as_cache, kv_drift, prefix_forward

P = 7


def adapted(architecture: str) -> PeftModel:
    """A model with an adapter that does something."""
    model = get_peft_model(
        tiny_model(architecture), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    torch.manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.2)
    return model.eval()


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
