"""What an engine can put into a model before it answers: another model's keys and values, at some of a prompt's tokens.

Of the prefix they are the same in every prompt: computed once, put in front, and only the rest is run. Query and
postfix stand elsewhere in every prompt: there keys and values are exchanged as the model's layers hand them to the
cache, so that all tokens behind them see the exchanged ones. The model's own prefix is put in front all the same: to
run it once saves what it costs to ask the other model for the query's.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from emeval.errors import InputError
from emeval.models import Pair, Which
from emeval.prefix import (
    KV,
    PrefixCapture,
    as_cache,
    before_rope,
    check_before_rope,
    decoder,
    keys_before_rope,
    prefix_forward,
    put_at,
    put_in_front,
)


@dataclass(frozen=True)
class Patch:
    """An intervention on every prompt; with neither `prefix` nor `span` only the choice of who answers."""

    acting: Callable[[], AbstractContextManager[Any]]
    """Within what it returns, the model that answers."""
    prefix: KV | None = None
    """Stands in for the first `prefix.tokens` tokens of every prompt that it covers."""
    span: SpanPatch | None = None
    """What is exchanged behind the prefix."""
    ids: tuple[int, ...] = ()
    """The prefix that prompts must start with to be patched."""

    def covers(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt is patched: it starts with the prefix and goes on. Others are answered as they are."""
        return len(prompt) > len(self.ids) and tuple(prompt[: len(self.ids)]) == self.ids


class SpanPatch:
    """Keys and values of one model at another's query or postfix.

    The query's are those of the source on the same prompt, at as many of its first tokens as the prefix has, or all if
    it has fewer (arXiv 2606.06667: "the same number of query tokens"; it does not say which). The postfix's are those
    of the source with an empty query, the same for all prompts; its keys are rotated to where the postfix stands.

    Args:
        pair: Both models.
        source: Whose keys and values are put in.
        region: `query` or `postfix`.
        prefix_ids: The prompts' common prefix.
        postfix_ids: Their common postfix.

    Raises:
        InputError: The model's keys cannot be read before their rotation (postfix only).
    """

    def __init__(
        self, pair: Pair, source: Which, region: str, prefix_ids: Sequence[int], postfix_ids: Sequence[int]
    ) -> None:
        self._pair, self._source, self._region = pair, source, region
        self._prefix, self._postfix = tuple(prefix_ids), tuple(postfix_ids)
        self._kept = self._with_empty_query() if region == "postfix" else None

    @contextlib.contextmanager
    def cache(
        self, model: Any, ids: Tensor, mask: Tensor, starts: Sequence[int], lengths: Sequence[int], head: KV | None
    ) -> Iterator[DynamicCache]:
        """Within it, a cache whose first forward over these rows has its keys and values exchanged.

        Args:
            model: The model that answers.
            ids: `[rows, columns]` that the first forward will be given.
            mask: Its attention mask, `[rows, columns]` behind as many as `head` has tokens.
            starts: The column at which each row's prompt (or what is left of it behind `head`) begins.
            lengths: How many columns that takes.
            head: The prefix of all prompts, of one row, where it has been run already; it is in the cache first.

        Raises:
            InputError: A prompt does not end with the postfix.
        """
        skip = head.tokens if head else 0
        places = self._places(ids, starts, lengths, len(self._prefix) - skip)
        if self._kept is None:
            found = self._observed_behind_prefix(ids, places) if skip else self._observed(ids, mask)
            yield _PatchedCache(model, places, found.keys, found.values, head)
            return
        keys, values = (tuple(_spread(t, places) for t in part) for part in self._kept)

        def exchanged(call: int, own: Tensor) -> Tensor:
            return torch.where(places[:, None, :, None], keys[call].to(own), own) if call < len(keys) else own

        with before_rope(model, exchanged):
            yield _PatchedCache(model, places, None, values, head)

    def _places(self, ids: Tensor, starts: Sequence[int], lengths: Sequence[int], ahead: int) -> Tensor:
        """`[rows, columns]`, True where keys and values are exchanged; `ahead` prefix tokens come first in a row."""
        places = torch.zeros_like(ids, dtype=torch.bool)
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            first, last = start + ahead, start + length - len(self._postfix)
            if self._region == "query":
                places[row, first : max(first, min(first + len(self._prefix), last))] = True
                continue
            if tuple(ids[row, last : start + length].tolist()) != self._postfix:
                hint = "Its text merges with the template (trailing white space?): trim it"
                raise InputError("a prompt does not end with the postfix of the others", where="--region", hint=hint)
            places[row, last : start + length] = True
        return places

    @torch.inference_mode()
    def _observed(self, ids: Tensor, mask: Tensor) -> KV:
        """The source's keys and values of these rows, run whole."""
        capture = PrefixCapture(None, rows=None)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with self._pair.acting(self._source) as model:
            decoder(model)(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=capture, use_cache=False
            )
        return capture.captured()

    @torch.inference_mode()
    def _observed_behind_prefix(self, ids: Tensor, places: Tensor) -> KV:
        """The same of the tokens at these places alone, which follow the prefix; zero elsewhere."""
        counts = places.sum(dim=1)
        # Close together, whatever padding is between them and the prefix in these rows.
        there = torch.arange(max(int(counts.max()), 1), device=ids.device) < counts[:, None]
        queries = torch.zeros_like(there, dtype=ids.dtype)
        queries[there] = ids[places]
        head = self._own_prefix
        mask = torch.cat([torch.ones(len(ids), head.tokens, dtype=torch.bool, device=ids.device), there], dim=1)
        with self._pair.acting(self._source) as model:
            cache = as_cache(head, len(ids), model)
            decoder(model)(input_ids=queries, attention_mask=mask.long(), past_key_values=cache, use_cache=True)

        def back(found: Tensor) -> Tensor:
            out = found.new_zeros(len(ids), ids.shape[1], found.shape[1], found.shape[3])
            out[places] = found[:, :, head.tokens :].transpose(1, 2)[there]
            return out.transpose(1, 2)

        return KV(*(tuple(map(back, part)) for part in zip(*((c.keys, c.values) for c in cache.layers), strict=True)))

    @functools.cached_property
    def _own_prefix(self) -> KV:
        """The source's."""
        with torch.inference_mode(), self._pair.acting(self._source) as model:
            return prefix_forward(model, self._prefix)

    @torch.inference_mode()
    def _with_empty_query(self) -> KV:
        """The source's keys (before RoPE) and values of the postfix behind the prefix alone."""
        capture = PrefixCapture(None)
        with self._pair.acting(self._source) as model, keys_before_rope(model) as keys:
            ids = torch.tensor([self._prefix + self._postfix], device=next(model.parameters()).device)
            model(input_ids=ids, past_key_values=capture, use_cache=False, logits_to_keep=1)
        found = capture.captured()
        check_before_rope(keys, found)
        return KV(*(tuple(t[:, :, len(self._prefix) :] for t in part) for part in (keys, found.values)))


class _PatchedCache(DynamicCache):  # type: ignore[misc]
    """Exchanges keys and values at some places of the first forward; what comes later is the model's own.

    Args:
        model: The model that fills it.
        places: `[rows, columns]`, True where to exchange.
        keys: A tensor a layer, `[rows, kv_heads, columns, head_dim]`; None leaves keys alone. `values` alike.
        head: What all rows begin with, of one row; it is not exchanged.
    """

    def __init__(
        self, model: Any, places: Tensor, keys: Sequence[Tensor] | None, values: Sequence[Tensor], head: KV | None
    ) -> None:
        super().__init__(config=model.config.get_text_config(decoder=True))
        self._places = places[:, None, :, None]
        self._left: dict[int, tuple[Tensor | None, Tensor]] = {}
        if head:
            put_in_front(self, head, len(places))
        self._left = {layer: (keys[layer] if keys is not None else None, v) for layer, v in enumerate(values)}
        """What is still to be put in, by layer; what was, is let go of."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As `DynamicCache`, of what was exchanged."""
        if layer_idx in self._left:
            keys, values = self._left.pop(layer_idx)
            if keys is not None:
                key_states = torch.where(self._places, keys, key_states)
            value_states = torch.where(self._places, values, value_states)
        found: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return found


def _spread(part: Tensor, places: Tensor) -> Tensor:
    """`[1, heads, tokens, dim]` put at each row's marked columns, as many as tokens; zero elsewhere."""
    rows, columns = places.shape
    out = part.new_zeros(rows, part.shape[1], columns, part.shape[3])
    put_at(out, places, part)
    return out
