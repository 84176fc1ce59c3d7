"""Layer-wise activation patching: the prefix's residual stream at the input of one block (arXiv 2606.06667).

The prefix sees only itself, so what a patched block and the blocks behind it make of it depends on nothing else: one
forward over the prefix gives the keys and values that all prompts then start from. Layers count from 0; layer 0 is the
embeddings, which LoRA leaves alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from emeval.models import OTHER, Pair, Which
from emeval.prefix import KV, decoder, prefix_forward


def patched_residual(
    pair: Pair, prefix_ids: Sequence[int], layer: int, tokens: Collection[int] | None = None, *, into: Which = "tuned"
) -> KV:
    """Keys and values of a model's prefix whose residual stream is the other model's at the input of block `layer`.

    Args:
        pair: Both models.
        prefix_ids: The prefix's token ids.
        layer: Which block, from 0.
        tokens: Positions to patch; None is all of them.
        into: Whose blocks run.

    Returns:
        KV, each tensor `[1, kv_heads, tokens, head_dim]`; of blocks before `layer` they are the model's own.

    Raises:
        ValueError: If there is no such layer, or the prefix is empty.
    """
    at = list(range(len(prefix_ids)) if tokens is None else tokens)
    with torch.inference_mode():
        with pair.acting(OTHER[into]) as model, _before_block(model, layer, lambda hidden: None) as seen:
            prefix_forward(model, prefix_ids)
        (other,) = seen

        def patched(hidden: Tensor) -> Tensor:
            put = hidden.clone()
            put[:, at] = other[:, at].to(hidden)
            return put

        with pair.acting(into) as model, _before_block(model, layer, patched):
            return prefix_forward(model, prefix_ids)


@contextlib.contextmanager
def _before_block(model: Any, layer: int, act: Callable[[Tensor], Tensor | None]) -> Iterator[list[Tensor]]:
    """Within it, `act` is given the hidden states `[rows, tokens, width]` before a block; what it returns goes in."""
    blocks: Any = decoder(model).layers
    if not 0 <= layer < len(blocks):
        raise ValueError(f"there is no layer {layer}: the model has {len(blocks)}, counted from 0")
    seen: list[Tensor] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        seen.append(hidden)
        put = act(hidden)
        if put is None:
            return None
        return ((put, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": put})

    hook = blocks[layer].register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()
