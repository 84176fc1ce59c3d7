"""KV patching: keys and values of one model's prefix in another (arXiv 2606.06667, section on KV patching).

Direction: the *tuned* model answers, but its prefix is the *initial* model's. What remains of a behaviour then does
not come through the prefix; what disappears did. The converse puts the tuned model's prefix into the initial model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch

from emeval.models import Pair, Which
from emeval.prefix import KV, prefix_forward

Part = Literal["both", "keys", "values"]


def patched_prefix(model: Any, prompt_ids: Sequence[int], source: Which) -> KV:
    """Keys and values of the prefix as `source` computes them, to be put in front of any continuation.

    Args:
        model: A `Pair`, or a PEFT model; with its adapter off it is the initial model.
        prompt_ids: The prefix's token ids.
        source: 'initial' for the patch, 'tuned' for the converse and for the identity it is tested against.

    Returns:
        KV, each tensor `[1, kv_heads, len(prompt_ids), head_dim]`, without gradients.

    Raises:
        InputError: If the model has no adapter to switch off and `source` is 'initial'.
        ValueError: If the prefix is empty.
    """
    pair = model if isinstance(model, Pair) else Pair(model)
    with torch.inference_mode(), pair.acting(source) as acting:
        return prefix_forward(acting, prompt_ids)


def mixed(own: KV, other: KV, layers: Collection[int], tokens: Collection[int], part: Part = "both") -> KV:
    """One prefix with another's keys, values or both at some layers and tokens.

    Nothing is computed anew: what stands at the other layers and tokens is what the model had by itself.

    Args:
        own: What stays. Tensors `[1, kv_heads, tokens, head_dim]`.
        other: What is put in, of the same shapes.
        layers: Counted from 0.
        tokens: Positions in the prefix, counted from 0.
        part: Keys, values or both.
    """
    at = list(tokens)

    def exchanged(mine: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        out = []
        for layer, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            put = a.clone()
            if layer in layers:
                put[:, :, at] = b[:, :, at]
            out.append(put)
        return tuple(out)

    keys = own.keys if part == "values" else exchanged(own.keys, other.keys)
    return KV(keys, own.values if part == "keys" else exchanged(own.values, other.values))
