"""All that a plan asks of its model, put to one engine: replies turn by turn, then the likelihoods of given pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

from emeval.engine import Engine
from emeval.engine.choose import Opening, open_engine
from emeval.engine.patch import Patch
from emeval.engine.patched import PatchedPrefix
from emeval.errors import IncompleteError
from emeval.models import ModelSource, Placement
from emeval.probe.kinds import UNASKED
from emeval.probe.likelihood import read_pairs, stored_likelihoods
from emeval.probe.plan import ScorePlan
from emeval.probe.run import Ask, ask_all, missing, stored_completions
from emeval.store import Jsonl, Run
from emeval.types import Completion, Likelihood, OnCount


def completions_of(run: Run) -> Jsonl[Completion]:
    """The run's stored replies."""
    return Jsonl(run.completions_path, Completion)


def likelihoods_of(run: Run) -> Jsonl[Likelihood]:
    """The run's stored likelihoods."""
    return Jsonl(run.path / "likelihoods.jsonl", Likelihood)


def all_stored(plan: ScorePlan, run: Run) -> bool:
    """Whether nothing is left to ask."""
    had, total = _counts(plan, stored_completions(completions_of(run)), stored_likelihoods(likelihoods_of(run)))
    return had == total


def _counts(
    plan: ScorePlan, stored: dict[tuple[str, str], Completion], pairs: dict[tuple[str, str], Likelihood]
) -> tuple[int, int]:
    """How many replies and likelihoods are stored, and how many the plan asks for."""
    found = stored | pairs  # keys of the two kinds are never alike
    rounds = [turn for probe in plan.specs for turn in plan.asks_with(probe, stored)]
    return sum(len(turn) - len(missing(turn, found)) for turn in rounds), sum(map(plan.expected, plan.specs))


def asked(plan: ScorePlan) -> list[str]:
    """The probes that generate replies."""
    return [probe for probe, spec in plan.specs.items() if spec.kind not in UNASKED]


def ask(plan: ScorePlan, run: Run, on_reply: OnCount) -> IncompleteError | None:
    """Put what is still missing. Returns the engine's complaint if some replies could not be had."""
    file, pair_file = completions_of(run), likelihoods_of(run)
    stored, pairs = stored_completions(file), stored_likelihoods(pair_file)
    count, total = _counts(plan, stored, pairs)
    if count == total:
        return None

    def replied() -> None:
        nonlocal count
        count += 1
        on_reply(count, total)

    on_reply(count, total)
    opening = Opening(plan.config, plan.source, plan.tokenizer, plan.renderer, run.path, _patched(plan), _served(plan))
    engine = open_engine(plan.engine, opening)
    complaint = None
    try:
        for group in _groups(plan, engine, stored):
            try:
                ask_all(group, engine, file, stored, replied)
            except IncompleteError as e:
                complaint = complaint or e
        for probe in plan.specs:
            if probe not in asked(plan) and missing(plan.asks[probe], pairs):
                assert plan.renderer is not None  # `plan_scoring` refuses contrast without one
                read_pairs(plan.asks[probe], plan.renderer, engine, pair_file, pairs, replied)
    except IncompleteError as e:
        complaint = complaint or e
    finally:
        engine.close()
        if plan.arm and plan.arm.release:
            plan.arm.release()
        file.close()
        pair_file.close()
    return complaint


def _patched(plan: ScorePlan) -> Callable[[Placement], tuple[Any, Patch]] | None:
    arm, renderer = plan.arm, plan.renderer
    if arm is None or arm.patched is None or renderer is None:
        return None
    make = arm.patched
    return lambda where: make(where, renderer)


def _served(plan: ScorePlan) -> tuple[ModelSource, PatchedPrefix | None] | None:
    arm, renderer = plan.arm, plan.renderer
    return arm.served(renderer) if arm and arm.served and renderer else None


def _groups(plan: ScorePlan, engine: Engine, stored: dict[tuple[str, str], Completion]) -> Iterator[list[Ask]]:
    """What to put together to the engine, turn by turn; the next turn is made when the one before has been answered.

    In process, a probe at a time: its batch plan must not depend on which other probes were named. A server has no
    such plan, and is kept busy with all probes at once.
    """
    turn = 0
    while True:
        rounds = [plan.asks_with(probe, stored) for probe in asked(plan)]
        asks = [ask for found in rounds if len(found) > turn for ask in found[turn]]
        if not asks:
            return

        def together(ask: Ask) -> tuple[str, ...]:
            probe = ask.question.probe if engine.name == "transformers" else ""
            return (ask.sampling.model_dump_json(), probe)

        for _, group in groupby(sorted(asks, key=together), together):
            found = list(group)
            if missing(found, stored):
                yield found
        turn += 1


def longest(ask: Ask, turn: int = 1) -> Completion:
    """A stand-in for a reply that is not there yet, for estimates."""
    asked = ask.question.messages[-1].content if turn == 1 else ask.question.turns[turn - 2]
    return Completion(
        key=f"{ask.key}/{turn}",
        probe=ask.question.probe,
        split=ask.question.split,
        question_id=ask.question.id,
        question=asked,
        sample=ask.sample,
        turn=turn,
        text="word" * ask.sampling.max_new_tokens,
        prompt_tokens=0,
        truncated=True,
    )
