"""The drift term, the capture, the prefix forward and the cache, on seven architectures."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import ARCHITECTURES, VOCAB, tiny_model

from emeval.prefix import (
    KV,
    PrefixCapture,
    as_cache,
    drift_terms,
    kv_drift,
    prefix_forward,
)

P = 7


def ids(rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def rows_with_prefix(rows: int = 4, tokens: int = 20, seed: int = 1) -> tuple[list[int], torch.Tensor]:
    prefix = ids(1, P)
    return prefix[0].tolist(), torch.cat([prefix.expand(rows, -1), ids(rows, tokens, seed)], dim=1)


def naive_drift(kv: KV, ref: KV) -> torch.Tensor:
    """PAPER section 2 word for word, in float64: a loop over layers, rows and tokens, differentiable."""
    total = torch.zeros((), dtype=torch.float64)
    for k, v, k0, v0 in zip(*kv, *ref, strict=True):
        for x, x0 in ((k.double(), k0.double()), (v.double(), v0.double())):
            for b in range(x.shape[0]):
                for t in range(x.shape[2]):
                    vector, vector0 = x[b, :, t].reshape(-1), x0[0, :, t].reshape(-1)
                    ratio = ((vector - vector0) ** 2).sum() / (vector0**2).sum()
                    total = total + ratio / (len(kv.keys) * x.shape[0] * x.shape[2])
    return total


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_drift_equals_the_naive_loop_and_so_do_its_gradients(architecture: str) -> None:
    prefix, rows = rows_with_prefix()
    initial, tuned = tiny_model(architecture, seed=0), tiny_model(architecture, seed=0)
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        reference = prefix_forward(initial, prefix).detach()

    gradients = []
    drifts = []
    for measure in (kv_drift, lambda *kv: naive_drift(KV(*kv[:2]), KV(*kv[2:]))):
        capture = PrefixCapture(P)
        tuned(input_ids=rows, past_key_values=capture, use_cache=False)
        drift = measure(*capture.captured(), *reference)
        tuned.zero_grad()
        drift.backward()
        drifts.append(drift.item())
        gradients.append({n: p.grad.clone() for n, p in tuned.named_parameters() if p.grad is not None})
    ours, naive = gradients
    assert drifts[0] > 1e-4, "the test models must differ, or it shows nothing"
    assert drifts[0] == pytest.approx(drifts[1], rel=1e-5)
    assert ours.keys() == naive.keys() and any("v_proj" in n or "qkv_proj" in n for n in ours)
    for name in ours:
        scale = naive[name].abs().max().item()
        torch.testing.assert_close(ours[name], naive[name], rtol=0, atol=1e-5 * max(scale, 1e-3), msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_capture_leaves_the_forward_as_it_was_and_equals_a_prefix_only_forward(architecture: str) -> None:
    prefix, rows = rows_with_prefix()
    model = tiny_model(architecture)
    capture = PrefixCapture(P)
    with torch.no_grad():
        assert torch.equal(
            model(input_ids=rows).logits, model(input_ids=rows, past_key_values=capture, use_cache=False).logits
        )
        alone = prefix_forward(model, prefix)
    for a, b in zip((*capture.captured().keys, *capture.captured().values), (*alone.keys, *alone.values), strict=True):
        assert a.shape == b.shape == (1, a.shape[1], P, a.shape[3])
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert kv_drift(*capture.captured(), *alone).item() < 1e-10


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_other_rows_their_order_and_padding_do_not_move_the_prefix(architecture: str) -> None:
    _, rows = rows_with_prefix(rows=4)
    model = tiny_model(architecture)

    def seen(batch: torch.Tensor, mask: torch.Tensor | None = None) -> KV:
        capture = PrefixCapture(P)
        with torch.no_grad():
            model(input_ids=batch, attention_mask=mask, past_key_values=capture, use_cache=False)
        return capture.captured()

    plain = seen(rows)
    padded = torch.cat([rows, torch.zeros(4, 9, dtype=torch.long)], dim=1)
    mask = torch.cat([torch.ones_like(rows), torch.zeros(4, 9, dtype=torch.long)], dim=1)
    for other in (seen(rows.flip(0)), seen(rows[:1]), seen(padded, mask), seen(torch.cat([rows[:1], ids(3, 27, 5)]))):
        assert kv_drift(*other, *plain).item() < 1e-10


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_continuation_from_the_prefix_cache_is_the_whole_forward(architecture: str) -> None:
    prefix, rows = rows_with_prefix()
    model = tiny_model(architecture)
    with torch.no_grad():
        whole = model(input_ids=rows).logits[:, P:]
        cache = as_cache(prefix_forward(model, prefix), len(rows), model)
        rest = model(input_ids=rows[:, P:], attention_mask=torch.ones_like(rows), past_key_values=cache).logits
    torch.testing.assert_close(rest, whole, rtol=0, atol=5e-5)


def test_gradient_checkpointing_is_told_not_silently_zero() -> None:
    prefix, rows = rows_with_prefix()
    model = tiny_model("llama").train()
    model.gradient_checkpointing_enable()
    capture = PrefixCapture(P)
    model(input_ids=rows, past_key_values=capture, use_cache=False)
    with pytest.raises(RuntimeError, match="gradient checkpointing"):
        capture.captured()
    kv = prefix_forward(model, prefix)
    assert kv.tokens == P and kv.keys[0].requires_grad
    assert model.is_gradient_checkpointing, "it is on again afterwards"


def test_a_zero_reference_norm_is_skipped_and_counted() -> None:
    k, v = torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4)
    k0 = k.clone()
    k0[:, :, 1] = 0
    terms = drift_terms([2 * k], [v], [k0], [v])
    assert int(terms.skipped) == 1
    # Tokens 0 and 2 moved by their own norm, token 1 has no ratio; values did not move.
    assert kv_drift([2 * k], [v], [k0], [v]).item() == pytest.approx(1.0)
    assert math.isfinite(kv_drift([2 * k], [v], [torch.zeros_like(k)], [torch.zeros_like(v)]).item())


def test_a_mask_leaves_tokens_out_row_by_row() -> None:
    ref = torch.ones(2, 1, 3, 2)
    moved = ref.clone()
    moved[0, :, 0] = 2.0  # ratio 1 at token 0 of row 0
    moved[1, :, 2] = 3.0  # ratio 4 at token 2 of row 1
    full = kv_drift([moved], [ref], [ref], [ref]).item()
    assert full == pytest.approx((1 / 3 + 4 / 3) / 2)
    mask = torch.tensor([[True, False, False], [True, True, False]])
    assert kv_drift([moved], [ref], [ref], [ref], mask).item() == pytest.approx((1.0 + 0.0) / 2)


def test_drift_is_reduced_in_fp32_for_bf16_inputs() -> None:
    ref = torch.full((1, 4, 5, 64), 3.0, dtype=torch.bfloat16)
    moved = ref * 1.0078125  # one bf16 step
    drift = kv_drift([moved], [ref], [ref], [ref])
    assert drift.dtype == torch.float32
    expected = ((moved.double() - ref.double()) ** 2).sum() / (ref.double() ** 2).sum()
    assert drift.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("layers", "mask"), [((1, 2, 1, 1), None), ((0, 0, 0, 0), None), ((1, 1, 1, 1), torch.ones(1, 2))]
)
def test_shapes_that_do_not_fit_are_refused(layers: tuple[int, ...], mask: torch.Tensor | None) -> None:
    x = torch.ones(1, 1, 3, 2)
    with pytest.raises(ValueError, match=r"layers|mask"):
        kv_drift(*([x] * n for n in layers), mask)


def test_an_empty_prefix_is_refused() -> None:
    with pytest.raises(ValueError, match="prefix is empty"):
        prefix_forward(tiny_model("llama"), [])
