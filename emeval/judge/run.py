"""Judging: from completions to stored judgements. Rule judges are here; `llm.py` has those that are models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from emeval.data.behaviours import Behaviour
from emeval.judge.prompt import Turn
from emeval.judge.rules import VERSION, judge_reply
from emeval.store import Jsonl, Run, sha256_of
from emeval.types import Completion, Judgement, Outcome


def judgements_of(run: Run) -> Jsonl[Judgement]:
    """The run's stored judgements."""
    return Jsonl(run.judgements_path, Judgement)


@dataclass(frozen=True)
class Item:
    """One reply to judge. `turns` is the conversation that a judge model is shown, the reply in its last turn."""

    completion: Completion
    turns: tuple[Turn, ...] = ()


class Judge(Protocol):
    """What gives replies their outcomes."""

    @property
    def id(self) -> str:
        """Changes with anything that may change a verdict, so that an old judgement is never taken for a new one."""
        ...

    def judge_all(
        self, items: Sequence[Item], file: Jsonl[Judgement], on_judged: Callable[[], None] = lambda: None
    ) -> list[Judgement]:
        """One judgement per item, in order; what `file` holds is reused, what it lacks is appended."""
        ...


@dataclass(frozen=True)
class RuleJudge:
    """A behaviour's detectors as a judge."""

    behaviour: Behaviour

    @property
    def id(self) -> str:
        """Changes with the detectors and with how they are read."""
        detectors = [d.model_dump_json() for d in self.behaviour.detectors]
        return f"rules/{self.behaviour.name}@{sha256_of(str(VERSION), *detectors)[:8]}"

    def judge(self, completion: Completion) -> Judgement:
        """1 where the behaviour shows, 0 where it does not. Every reply gets a verdict, an empty one too."""
        verdict = judge_reply(self.behaviour, completion.text)
        return verdict_on(
            completion,
            key=sha256_of(completion.key, self.id),
            judge=self.id,
            outcome="scored",
            value=float(verdict.present),
            detail=verdict.detail,
        )

    def judge_all(
        self, items: Sequence[Item], file: Jsonl[Judgement], on_judged: Callable[[], None] = lambda: None
    ) -> list[Judgement]:
        """See `Judge.judge_all`."""
        stored = {(j.probe, j.key): j for j in file.read()}
        judgements = []
        for item in items:
            judgement = stored.get((item.completion.probe, sha256_of(item.completion.key, self.id)))
            if judgement is None:
                judgement = self.judge(item.completion)
                file.append(judgement)
                on_judged()
            judgements.append(judgement)
        return judgements


@dataclass(frozen=True)
class WordCount:
    """How many words a reply has: what is between white space."""

    id: str = "rules/words"

    def judge_all(
        self, items: Sequence[Item], file: Jsonl[Judgement], on_judged: Callable[[], None] = lambda: None
    ) -> list[Judgement]:
        """See `Judge.judge_all`; counting is cheaper than storing the counts."""
        return [
            verdict_on(
                item.completion,
                key=sha256_of(item.completion.key, self.id),
                judge=self.id,
                outcome="scored",
                value=float(len(item.completion.text.split())),
            )
            for item in items
        ]


def verdict_on(
    completion: Completion, *, key: str, judge: str, outcome: Outcome, value: float | None, **more: Any
) -> Judgement:
    """The record of a verdict, with what it takes over from the reply."""
    return Judgement(
        key=key,
        completion_key=completion.key,
        probe=completion.probe,
        split=completion.split,
        question_id=completion.question_id,
        judge=judge,
        outcome=outcome,
        value=value,
        turn=completion.turn,
        truncated=completion.truncated,
        foreign_prefix=completion.foreign_prefix,
        **more,
    )
