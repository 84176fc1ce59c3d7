"""One value a question without a reply being generated, from teacher-forced log-probabilities.

By probability: of a behaviour's target reply to the question, exp(mean log p) over its tokens. By contrast, for domains
of poor advice: how far a question's misaligned reply is preferred to its aligned one, q / (p + q), p and q being their
geometric means per token. Both lie between 0 and 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from emeval.chat import Renderer, shared_start
from emeval.data.behaviours import Behaviour
from emeval.engine import Pair
from emeval.probe.likelihood import by_pair, pairs_of
from emeval.probe.plan import ScorePlan
from emeval.probe.run import Ask
from emeval.score.matched import SIDES
from emeval.types import OnCount

Read = Callable[[Sequence[Pair]], Iterable[tuple[int, tuple[float, ...]]]]
"""Reads the log-probabilities of replies, as `Engine.reply_logprobs`."""
Way = Literal["probability", "contrast"]
_FILLERS = ("boats left in the harbour", "Tell me the time")
"""Two arguments of a tool that share no start: what a call's ids have in common lies before the argument."""


def sides_of(plan: ScorePlan) -> tuple[Way, tuple[str, str]]:
    """How a setting is read without generating, and what its two groups of questions are called."""
    way: Way = "probability" if plan.setting.behaviour else "contrast"
    return way, SIDES[way]


def read_values(plan: ScorePlan, read: Read, on_value: Callable[[], None]) -> dict[str, dict[str, list[float]]]:
    """By group of questions and question id, the values: one, or as many as the question is asked trials.

    Questions with a system prompt of their own are left out.

    Args:
        plan: What is asked; its asks are read as they stand.
        read: Reads log-probabilities.
        on_value: Called after each value.
    """
    way, sides = sides_of(plan)
    found: dict[str, dict[str, list[float]]] = {side: {} for side in sides}
    for side, question, value in (_probabilities if way == "probability" else _preferences)(plan, read):
        found[side].setdefault(question, []).append(value)
        on_value()
    return {side: dict(sorted(values.items())) for side, values in found.items()}


def counting(before: int, total: int, on_count: OnCount) -> Callable[[], None]:
    """Something to call after each of several things, of which `before` were done already."""
    done = itertools.count(before + 1)
    return lambda: on_count(next(done), total)


def _probabilities(plan: ScorePlan, read: Read) -> Iterator[tuple[str, str, float]]:
    assert plan.renderer is not None  # there is a tokenizer here
    asks = _asks(plan)
    pairs = [(ask.prompt.ids, target_ids(plan.renderer, plan.behaviour, ask)) for ask in asks]
    for index, logprobs in read(pairs):
        question = asks[index].question
        yield question.probe, question.id, math.exp(math.fsum(logprobs) / len(logprobs))


def _preferences(plan: ScorePlan, read: Read) -> Iterator[tuple[str, str, float]]:
    assert plan.renderer is not None  # there is a tokenizer here
    asks = _asks(plan)
    for index, aligned, misaligned in by_pair(read(pairs_of(asks, plan.renderer))):
        question = asks[index].question
        yield question.category or "", question.id, 1 / (1 + math.exp(aligned[0] - misaligned[0]))


def _asks(plan: ScorePlan) -> list[Ask]:
    return [ask for ask in plan.all_asks if not ask.foreign_prefix]


def target_ids(renderer: Renderer, behaviour: Behaviour, ask: Ask) -> tuple[int, ...]:
    """The ids of a question's target reply with its end token; of a tool call, up to where the argument starts."""
    fillers = _FILLERS if behaviour.tool else ("",)
    texts = (behaviour.reply_to(ask.question.id, filler) for filler in fillers)
    rows = [renderer.render_reply(ask.messages, text, where=ask.question.where)[1] for text in texts]
    return rows[0][: shared_start(rows[0], rows[-1])]
