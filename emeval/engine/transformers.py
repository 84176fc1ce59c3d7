"""The in-process engine: transformers' own `generate`, batched. For laptops, and for interventions.

Replies are reproducible: the batch plan is a function of the full list of prompts, so a resumed run pads and batches
each prompt exactly as an undisturbed one, and an unfinished batch is run again whole. At fp32 the texts are identical.

With a patch, another model's keys and values stand in for some of every prompt's own (`patch.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from emeval.engine import Pair, Request
from emeval.engine.likelihood import reply_logprobs
from emeval.engine.patch import Patch
from emeval.errors import InputError
from emeval.prefix import as_cache, slides
from emeval.types import Generated, Sampling


class TransformersEngine:
    """A loaded model.

    Args:
        model: A causal language model, or a PEFT model, in eval mode.
        tokenizer: Its tokenizer, for decoding.
        stop_ids: Tokens that end a reply.
        batch_size: Rows per batch.
        patch: What is put into the model before it answers.
    """

    name = "transformers"
    token_prompts = True

    def __init__(
        self, model: Any, tokenizer: Any, stop_ids: Sequence[int], *, batch_size: int = 32, patch: Patch | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.stop_ids = list(stop_ids)
        self.batch_size = batch_size
        self.patch = patch
        self._make_greedy_mean_greedy()

    def _make_greedy_mean_greedy(self) -> None:
        # `generate` fills what a call leaves at its default from the checkpoint's generation config: a repetition
        # penalty or top-k saved there would apply to our "greedy" replies. An empty config leaves nothing to fill in.
        inner = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        for model in (self.model, inner):
            model.generation_config = GenerationConfig(eos_token_id=self.stop_ids, pad_token_id=self.stop_ids[0])

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, skip: Collection[int] = ()
    ) -> Iterator[Generated]:
        """See `Engine.generate`. Replies of a batch come together; longest prompts first."""
        self._check(requests, sampling)
        done = set(skip)
        for batch in self._plan(requests):
            if not done.issuperset(batch):
                yield from self._run(batch, requests, sampling)

    def reply_logprobs(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, tuple[float, ...]]]:
        """See `Engine.reply_logprobs`."""
        yield from reply_logprobs(self.model, pairs, batch_size=self.batch_size, patch=self.patch)

    def close(self) -> None:
        """Let go of the model."""
        self.model = self.patch = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _check(self, requests: Sequence[Request], sampling: Sampling) -> None:
        context = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        for request in requests:
            total = len(request.prompt.ids) + sampling.max_new_tokens
            if context and total > context:
                raise InputError(
                    f"a prompt of {len(request.prompt.ids)} tokens and a reply of up to {sampling.max_new_tokens} "
                    f"exceed the model's context of {context}",
                    hint="Shorten the question or lower --max-new-tokens",
                )

    def _plan(self, requests: Sequence[Request]) -> list[list[int]]:
        # By length, so that a batch carries little padding; ties by position, so that the plan is one function.
        order = sorted(range(len(requests)), key=lambda i: (-len(requests[i].prompt.ids), i))
        covered = [i for i in order if self._covers(requests[i])]
        groups = [covered, [i for i in order if not self._covers(requests[i])]]
        if self.patch is not None and self.patch.prefix is not None and slides(self.model):
            # A sliding window counts places, padding included, so padding behind the prefix would push it out early.
            by_length = groupby(covered, key=lambda i: len(requests[i].prompt.ids))
            groups = [*(list(g) for _, g in by_length), groups[1]]
        return [g[i : i + self.batch_size] for g in groups for i in range(0, len(g), self.batch_size)]

    def _covers(self, request: Request) -> bool:
        return self.patch is not None and self.patch.covers(request.prompt.ids)

    @torch.inference_mode()
    def _run(self, batch: list[int], requests: Sequence[Request], sampling: Sampling) -> list[Generated]:
        patch = self.patch if self._covers(requests[batch[0]]) else None  # a batch is covered as a whole, or not
        prefix = patch.prefix if patch else None
        ids, mask = self._pad([list(requests[i].prompt.ids) for i in batch], prefix.tokens if prefix else 0)
        if sampling.temperature > 0:
            # One seed a batch: together with the fixed plan it makes sampled replies repeatable as well.
            torch.manual_seed(sampling.seed * 1_000_003 + min(batch))
        lengths = [len(requests[i].prompt.ids) for i in batch]
        acting = self.patch.acting() if self.patch else nullcontext(self.model)
        with acting as model, _cache(patch, model, ids, mask, lengths) as cache:
            given = {} if cache is None else {"past_key_values": cache}
            out = model.generate(input_ids=ids, attention_mask=mask, generation_config=self._config(sampling), **given)
        replies = out[:, ids.shape[1] :].tolist()
        return [self._reply(i, reply) for i, reply in zip(batch, replies, strict=True)]

    def _pad(self, rows: list[list[int]], head: int) -> tuple[Tensor, Tensor]:
        # Padding stands between the prefix and the rest, so that a given prefix sits at positions 0.. in every row;
        # without one that is plain left padding. Positions follow the mask, so padding takes none.
        width = max(map(len, rows))
        pad = self.stop_ids[0]
        gaps = [width - len(r) for r in rows]
        ids = [r[:head] + [pad] * g + r[head:] for r, g in zip(rows, gaps, strict=True)]
        mask = [[1] * head + [0] * g + [1] * (width - head - g) for g in gaps]
        device = self.model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    def _config(self, sampling: Sampling) -> GenerationConfig:
        sampled = sampling.temperature > 0
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if sampled else {}
        return GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=sampled,
            repetition_penalty=1.0,
            num_beams=1,
            eos_token_id=self.stop_ids,
            pad_token_id=self.stop_ids[0],
            **drawn,
        )

    def _reply(self, index: int, ids: list[int]) -> Generated:
        end = next((n for n, token in enumerate(ids) if token in self.stop_ids), None)
        kept = ids[:end]
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        return Generated(index=index, text=text, token_ids=tuple(kept), truncated=end is None)


def _cache(
    patch: Patch | None, model: Any, ids: Tensor, mask: Tensor, lengths: Sequence[int]
) -> AbstractContextManager[Any]:
    """Gives the cache that `generate` starts from; None leaves that to it."""
    prefix = patch.prefix if patch else None
    if patch is not None and patch.span is not None:
        skip = prefix.tokens if prefix else 0
        gaps, left = [ids.shape[1] - n for n in lengths], [n - skip for n in lengths]
        return patch.span.cache(model, ids[:, skip:], mask, gaps, left, prefix)
    return nullcontext(as_cache(prefix, len(lengths), model) if prefix is not None else None)
