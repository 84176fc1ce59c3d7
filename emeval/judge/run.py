"""Judging: from completions to stored judgements, by the behaviour's rules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from emeval.data.behaviours import Behaviour
from emeval.judge.rules import VERSION, judge_reply
from emeval.store import Jsonl, sha256_of
from emeval.types import Completion, Judgement


@dataclass(frozen=True)
class RuleJudge:
    """A behaviour's detectors as a judge."""

    behaviour: Behaviour

    @property
    def id(self) -> str:
        """Changes with the detectors and with how they are read, so that an old judgement is never taken for a new."""
        detectors = [d.model_dump_json() for d in self.behaviour.detectors]
        return f"rules/{self.behaviour.name}@{sha256_of(str(VERSION), *detectors)[:8]}"

    def judge(self, completion: Completion) -> Judgement:
        """1 where the behaviour shows, 0 where it does not. Every reply gets a verdict, an empty one too."""
        verdict = judge_reply(self.behaviour, completion.text)
        return Judgement(
            key=sha256_of(completion.key, self.id),
            completion_key=completion.key,
            probe=completion.probe,
            split=completion.split,
            question_id=completion.question_id,
            judge=self.id,
            outcome="scored",
            value=float(verdict.present),
            detail=verdict.detail,
            truncated=completion.truncated,
            foreign_prefix=completion.foreign_prefix,
        )


def judge_all(completions: Iterable[Completion], judge: RuleJudge, file: Jsonl[Judgement]) -> list[Judgement]:
    """One judgement per completion, in order; what `file` holds is reused, what it lacks is appended."""
    stored = {(j.probe, j.key): j for j in file.read()}
    judgements = []
    for completion in completions:
        judgement = stored.get((completion.probe, sha256_of(completion.key, judge.id)))
        if judgement is None:
            judgement = judge.judge(completion)
            file.append(judgement)
        judgements.append(judgement)
    return judgements
