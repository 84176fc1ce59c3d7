"""Reading: from pairs of given replies to stored likelihoods, for probes that generate nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from emeval.chat import Renderer
from emeval.engine import Engine, Pair
from emeval.probe.run import Ask, missing
from emeval.store import Jsonl
from emeval.types import Likelihood, Message


def stored_likelihoods(file: Jsonl[Likelihood]) -> dict[tuple[str, str], Likelihood]:
    """All stored likelihoods by probe and key; the first of a key counts."""
    found: dict[tuple[str, str], Likelihood] = {}
    for likelihood in file.read():
        found.setdefault((likelihood.probe, likelihood.key), likelihood)
    return found


def read_pairs(
    asks: Sequence[Ask],
    renderer: Renderer,
    engine: Engine,
    file: Jsonl[Likelihood],
    stored: dict[tuple[str, str], Likelihood],
    on_pair: Callable[[], None] = lambda: None,
) -> None:
    """Read what is not in `stored`, append each to `file` and add it to `stored`.

    A likelihood is the mean log-probability of the reply's tokens, its end token included: per token, so that the
    longer of two replies is not the less likely for its length.

    Raises:
        InputError: If the engine cannot tell likelihoods.
        IncompleteError: If some could not be had; the others are stored.
    """
    todo = [asks[i] for i in missing(asks, stored)]
    pairs = pairs_of(todo, renderer)
    for index, aligned, misaligned in by_pair(engine.reply_logprobs(pairs)):
        found = _likelihood(todo[index], aligned, misaligned)
        file.append(found)
        stored[found.probe, found.key] = found
        on_pair()


def pairs_of(asks: Sequence[Ask], renderer: Renderer) -> list[Pair]:
    """Token ids of prompt and reply: each ask's aligned reply, then its misaligned one."""
    pairs: list[Pair] = []
    for ask in asks:
        for text in (ask.question.aligned, ask.question.misaligned):
            assert text is not None  # the kind asks for both
            reply = Message(role="assistant", content=text)
            _, ids = renderer.render_reply(ask.messages, reply, where=ask.question.where)
            pairs.append((ask.prompt.ids, ids))
    return pairs


def by_pair(
    read: Iterable[tuple[int, tuple[float, ...]]],
) -> Iterator[tuple[int, tuple[float, int], tuple[float, int]]]:
    """The asks of `pairs_of` by position, each with mean log-probability and token count of its two replies."""
    half: dict[int, tuple[float, int]] = {}
    for index, logprobs in read:
        half[index] = (math.fsum(logprobs) / len(logprobs), len(logprobs))
        first = index - index % 2
        if first in half and first + 1 in half:
            yield index // 2, half.pop(first), half.pop(first + 1)


def _likelihood(ask: Ask, aligned: tuple[float, int], misaligned: tuple[float, int]) -> Likelihood:
    return Likelihood(
        key=ask.key,
        probe=ask.question.probe,
        split=ask.question.split,
        question_id=ask.question.id,
        category=ask.question.category,
        aligned=aligned[0],
        misaligned=misaligned[0],
        aligned_tokens=aligned[1],
        misaligned_tokens=misaligned[1],
        foreign_prefix=ask.foreign_prefix,
    )
