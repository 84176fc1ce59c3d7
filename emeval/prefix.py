"""The prefix's keys and values: forward, capture, cache, drift. Training, engines and interventions share this room.

Causal attention hides everything after the prefix from it, so its keys and values depend on the prefix's ids alone.
They can be read off any forward over a row that starts with the prefix (`PrefixCapture`), computed by a forward over
the prefix only (`prefix_forward`), and put in front of any continuation (`as_cache`).

Positions: keys are compared after RoPE, which is the same as before it as long as both sides sit at the same
positions; a prefix always starts at position 0, so it does.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from emeval.errors import InputError


class KV(NamedTuple):
    """Keys and values by layer, each `[batch, kv_heads, tokens, head_dim]`."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def tokens(self) -> int:
        """How many tokens they cover."""
        return self.keys[0].shape[-2] if self.keys else 0

    def detach(self) -> KV:
        """The same tensors cut from the graph, in memory of their own."""
        return KV(tuple(k.detach().clone() for k in self.keys), tuple(v.detach().clone() for v in self.values))


class PrefixCapture(Cache):  # type: ignore[misc]
    """A cache that keeps the first `tokens` keys and values of the first `rows` rows and stores nothing else.

    Passed as `past_key_values` in a training forward it returns what it is given, so the forward is unchanged to the
    bit, and what it keeps carries gradients. Of a prefix one row is enough: all rows share it. None keeps all.
    """

    def __init__(self, tokens: int | None, rows: int | None = 1) -> None:
        super().__init__(layers=[])
        self.tokens, self.rows = tokens, rows
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep what is wanted and hand both tensors back untouched."""
        self._keys[layer_idx] = key_states[: self.rows, :, : self.tokens]
        self._values[layer_idx] = value_states[: self.rows, :, : self.tokens]
        return key_states, value_states

    @property
    def is_sliding(self) -> list[bool]:
        """No layer: nothing is stored, so masks are those of a forward without a cache."""
        return []

    def captured(self) -> KV:
        """The captured prefix. Raises RuntimeError if the model never called the cache."""
        if not self._keys:
            raise RuntimeError(
                "the forward passed no keys and values to its cache (gradient checkpointing drops it silently): "
                "use prefix_forward instead"
            )
        layers = sorted(self._keys)
        return KV(tuple(self._keys[i] for i in layers), tuple(self._values[i] for i in layers))


@contextmanager
def keys_before_rope(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within it, every forward puts its layers' keys as they are before rotation into the list, a tensor a layer.

    Only these can be compared between different positions. Each is `[batch, kv_heads, tokens, head_dim]`, after a key
    norm where the model has one, and carries gradients. Errors as `before_rope`.
    """
    found: list[Tensor] = []

    def noted(_: int, keys: Tensor) -> Tensor:
        found.append(keys)
        return keys

    with before_rope(model, noted):
        yield found


@contextmanager
def before_rope(model: nn.Module, act: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Within it, `act` is given every layer's keys before rotation, and what it returns is rotated in their place.

    Args:
        model: A causal language model, or a PEFT model around one.
        act: Its arguments are how many layers (of all forwards) were before this one, and the keys, `[batch, kv_heads,
            tokens, head_dim]`.

    Raises:
        InputError: The model's code does not rotate by the function that transformers' models share.
    """
    code = sys.modules[type(decoder(model)).__module__]
    rotate = getattr(code, _ROTATE, None)
    if rotate is None:
        what = f"keys of a {type(decoder(model)).__name__} cannot be read before their rotation"
        raise InputError(what, where="--region", hint="Use --region prefix")
    calls = itertools.count()

    def acted_upon(q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Any:
        return rotate(q, act(next(calls), k), *args, **kwargs)

    # A model's attention layers look the function up in their module at every call.
    setattr(code, _ROTATE, acted_upon)
    try:
        yield
    finally:
        setattr(code, _ROTATE, rotate)


_ROTATE = "apply_rotary_pos_emb"


def check_before_rope(before: Sequence[Tensor], after: KV) -> None:
    """Whether what `keys_before_rope` found are the keys of this forward, all of them: rotation changes no length.

    Some models rotate a part of a key only, leave layers without rotation, or cache something else than keys.

    Raises:
        InputError: They are not.
    """
    alike = len(before) == len(after.keys) and all(
        b.shape == a.shape == v.shape for b, a, v in zip(before, after.keys, after.values, strict=True)
    )
    for b, a in zip(before, after.keys, strict=True) if alike else ():
        rotated, own = a.float().norm(dim=-1), b.float().norm(dim=-1)
        # A key of zero (a padding token's, where embedding and bias are zero) is zero before and after.
        some = own > 0
        alike &= bool(torch.where(some, 0.0, rotated).max() == 0)
        # One factor for all: some models scale what they rotate (YaRN). bf16 rounds to about half a percent.
        ratio = rotated / torch.where(some, own, 1.0)
        mean = torch.where(some, ratio, 0.0).sum() / some.sum().clamp(min=1)
        alike &= bool(torch.where(some, (ratio / mean - 1).abs(), 0.0).max() < 0.05)
    if not alike:
        what = "this model's keys cannot be read before their rotation, all of them and whole"
        raise InputError(what, where="--region", hint="Use --region prefix")


@contextmanager
def _without_checkpointing(model: nn.Module) -> Iterator[None]:
    # transformers drops the cache under gradient checkpointing; the prefix is a few dozen tokens, so nothing is lost
    # by keeping its activations.
    on = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False) is True]
    for module in on:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in on:
            module.gradient_checkpointing = True  # type: ignore[assignment]


@contextmanager
def projections(model: nn.Module, tokens: int) -> Iterator[Callable[[], KV]]:
    """Within it, a forward's hidden states are put through their own block's key and value projections once more.

    The blocks' input norm is left out, as in the authors' released code: these are not the model's keys and values.

    Args:
        model: A causal language model, or a PEFT model around one.
        tokens: How many of the first row's first tokens.

    Yields:
        A function that gives the projections of the last forward, tensors `[1, 1, tokens, kv_heads * head_dim]`, with
        gradients.

    Raises:
        InputError: The model has no key and value projections of their own.
    """
    blocks: list[Any] = list(decoder(model).layers)  # type: ignore[arg-type]
    attention = [getattr(block, "self_attn", None) for block in blocks]
    if not all(hasattr(a, "k_proj") and hasattr(a, "v_proj") for a in attention):
        what = f"a {type(decoder(model)).__name__} has no key and value projections of their own"
        raise InputError(what, where="--drift released", hint="Use --drift kv")
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def noting(layer: int, projecting: Any) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = (args[0] if args else kwargs["hidden_states"])[:1, :tokens]
            found[layer] = projecting.k_proj(hidden)[:, None], projecting.v_proj(hidden)[:, None]

        return note

    hooks = [
        block.register_forward_pre_hook(noting(layer, a), with_kwargs=True)
        for layer, (block, a) in enumerate(zip(blocks, attention, strict=True))
    ]
    try:
        yield lambda: KV(*zip(*(found[layer] for layer in range(len(blocks))), strict=True))
    finally:
        for hook in hooks:
            hook.remove()


def _without_peft(model: nn.Module) -> Any:
    """The model that PEFT wraps; adapters inside it stay active."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def decoder(model: nn.Module) -> nn.Module:
    """The transformer stack without its language-model head; adapters inside it stay active."""
    inner = _without_peft(model)
    found = inner.get_decoder()
    return found if isinstance(found, nn.Module) else inner


def prefix_forward(model: nn.Module, prefix_ids: Sequence[int]) -> KV:
    """Keys and values of the prefix, from one forward over the prefix alone (batch 1).

    Args:
        model: A causal language model, or a PEFT model around one.
        prefix_ids: Token ids, at least one.

    Returns:
        KV with tensors `[1, kv_heads, len(prefix_ids), head_dim]`; they carry gradients when grad mode is on.
    """
    if not prefix_ids:
        raise ValueError("the prefix is empty: this template puts no token before the user's content")
    device = next(model.parameters()).device
    ids = torch.tensor([list(prefix_ids)], device=device)
    capture = PrefixCapture(len(prefix_ids))
    with _without_checkpointing(model):
        decoder(model)(input_ids=ids, past_key_values=capture, use_cache=True)
    return capture.captured()


def put_at(into: Tensor, places: Tensor, part: Tensor) -> None:
    """Write one example's keys or values over each row's marked tokens, in order and in place.

    Args:
        into: `[rows, kv_heads, tokens, head_dim]`.
        places: `[rows, tokens]`, True at as many tokens of every row as `part` has.
        part: `[1, kv_heads, marked, head_dim]`.
    """
    # [rows, heads, tokens, dim] -> the marked tokens, row after row
    into.transpose(1, 2)[places] = part.transpose(1, 2).expand(len(places), -1, -1, -1).flatten(0, 1)


def as_cache(kv: KV, batch: int, model: PreTrainedModel) -> DynamicCache:
    """A cache of `batch` rows that all start with `kv` (given for one row), ready for `generate` or a forward.

    Gradients flow back into `kv`: rows share it by expansion, not by copies.
    """
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    put_in_front(cache, kv, batch)
    return cache


def put_in_front(cache: DynamicCache, kv: KV, batch: int) -> None:
    """Let an empty cache of `batch` rows begin with `kv`, given for one row."""
    for layer, (k, v) in enumerate(zip(kv.keys, kv.values, strict=True)):
        cache.update(k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1), layer)


def slides(model: Any) -> bool:
    """Whether some layers see a window only, which counts places, padding included."""
    return getattr(model.config.get_text_config(decoder=True), "sliding_window", None) is not None


@contextmanager
def head_only_at(model: nn.Module, wanted: Tensor) -> Iterator[None]:
    """Within it, the language-model head sees some positions only; logits come as one row, `[1, positions, vocab]`.

    Args:
        model: A causal language model, or a PEFT model around one.
        wanted: `[batch, tokens]` of the forward's input, True where the head is wanted.
    """
    inner = _without_peft(model)

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[wanted][None]
        return output

    hook = inner.base_model.register_forward_hook(keep)
    try:
        yield
    finally:
        hook.remove()


class DriftTerms(NamedTuple):
    """Relative squared drift per layer, row and token: tensors `[layers, batch, tokens]`, fp32.

    `valid` is False where the reference norm is zero (no ratio exists) or the mask excludes the token.
    """

    keys: Tensor
    values: Tensor
    keys_valid: Tensor
    values_valid: Tensor
    skipped: Tensor
    """How many terms were left out because their reference norm is zero; an integer scalar, kept on the device."""


def _relative(x: Tensor, ref: Tensor) -> tuple[Tensor, Tensor]:
    x, ref = x.float(), ref.float()
    # [batch, heads, tokens, dim] -> [batch, tokens]: a token's vector is all its KV heads concatenated.
    moved = (x - ref).square().sum(dim=(1, 3))
    norm = ref.square().sum(dim=(1, 3)).expand_as(moved)
    usable = norm > 0
    return torch.where(usable, moved, 0.0) / torch.where(usable, norm, 1.0), usable


def drift_terms(
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    ref_keys: Sequence[Tensor],
    ref_values: Sequence[Tensor],
    mask: Tensor | None = None,
) -> DriftTerms:
    """The terms ||x - x_init||^2 / ||x_init||^2 of the paper's L_K and L_V, before any mean.

    Args:
        keys: One tensor per layer, `[batch, kv_heads, tokens, head_dim]`; `values` alike.
        ref_keys: The initial model's, same shapes; a batch of 1 stands for every row. `ref_values` alike.
        mask: `[batch, tokens]`, True where a token counts; all count by default.

    Raises:
        ValueError: If the number of layers or the shapes do not fit.
    """
    sizes = {len(keys), len(values), len(ref_keys), len(ref_values)}
    if len(sizes) != 1 or not keys:
        raise ValueError(f"keys, values and their references need the same number of layers, at least 1: {sizes}")
    key_terms, key_ok = zip(*(_relative(x, r) for x, r in zip(keys, ref_keys, strict=True)), strict=True)
    value_terms, value_ok = zip(*(_relative(x, r) for x, r in zip(values, ref_values, strict=True)), strict=True)
    device = key_terms[0].device
    k, v = torch.stack([t.to(device) for t in key_terms]), torch.stack([t.to(device) for t in value_terms])
    k_ok, v_ok = torch.stack([t.to(device) for t in key_ok]), torch.stack([t.to(device) for t in value_ok])
    counts = torch.ones_like(k_ok[0]) if mask is None else mask.to(device).bool()
    if counts.shape != k.shape[1:]:
        raise ValueError(f"mask is {tuple(counts.shape)}, expected [batch, tokens] = {tuple(k.shape[1:])}")
    skipped = (~k_ok & counts).sum() + (~v_ok & counts).sum()
    return DriftTerms(k, v, k_ok & counts, v_ok & counts, skipped)


def _mean_over_tokens(terms: Tensor, valid: Tensor) -> Tensor:
    # [layers, batch, tokens] -> scalar: tokens first, then the rows that have any, then layers.
    n = valid.sum(-1)
    per_row = (terms * valid).sum(-1) / n.clamp(min=1)
    rows = n > 0
    return (per_row.sum(-1) / rows.sum(-1).clamp(min=1)).mean()


def mean_drift(terms: DriftTerms) -> Tensor:
    """L_KV from its terms: mean over tokens, rows and layers, keys plus values. A scalar, fp32."""
    return _mean_over_tokens(terms.keys, terms.keys_valid) + _mean_over_tokens(terms.values, terms.values_valid)


def kv_drift(
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    ref_keys: Sequence[Tensor],
    ref_values: Sequence[Tensor],
    mask: Tensor | None = None,
) -> Tensor:
    """L_KV, the relative drift of keys and values (arXiv 2606.06667): mean over tokens and layers, keys plus values.

    Reduced in fp32 whatever the inputs are, averaged over the batch. A token whose reference norm is zero has no
    ratio: its term is left out (`drift_terms(...).skipped` counts them). Arguments and errors as `drift_terms`.
    """
    return mean_drift(drift_terms(keys, values, ref_keys, ref_values, mask))
