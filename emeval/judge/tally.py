"""From a probe's replies to its score: the judges are asked, and what they said is counted and measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from emeval.data.settings import Setting
from emeval.judge.panel import Call, Panel
from emeval.score import measures
from emeval.score.measures import by_question, whole
from emeval.store import sha256_of
from emeval.types import Completion, Estimate, Judgement, Likelihood, OnCount, OtherJudge, ProbeScore, Question, Split


@dataclass(frozen=True)
class Probed:
    """A probe and the replies that were had to it."""

    name: str
    kind: str
    split: Split
    setting: Setting
    questions: Mapping[str, Question]
    expected: int
    completions: Sequence[Completion]


@dataclass(frozen=True)
class Scored:
    """A probe's score, and its value by question, for comparisons of two runs."""

    score: ProbeScore
    values: dict[str, float]


def score_all(probed: Sequence[Probed], panel: Panel, tell: OnCount) -> list[Scored]:
    """Judge what is not judged yet and score it all; probes that no named judge could judge are left out.

    The panel is closed when this is over, however it ends.

    Raises:
        InputError: At once, if the judge's server refuses the key or does not know the model.
        EmevalError: At once, if it cannot be reached.
    """
    try:
        judged = _counter(panel, probed, tell)
        return [found for p in probed if (found := _score_replies(p, panel, judged))]
    finally:
        panel.close()


def _score_replies(probed: Probed, panel: Panel, on_judged: Callable[[], None]) -> Scored | None:
    by_role: dict[str, list[Judgement]] = {}
    made: dict[str, OtherJudge] = {}

    def meet(calls: Iterable[Call]) -> None:
        for call in calls:
            found = by_role[call.role] = panel.judge_all(call, on_judged)
            outcomes = dict(Counter(j.outcome for j in found))
            made[call.role] = OtherJudge(judge=call.judge.id, asked=len(call.items), outcomes=outcomes)

    meet(panel.calls(probed.kind, probed.setting, probed.questions, probed.completions))
    missed = {j.completion_key for j in by_role.get("main", ()) if j.value == 0.0}
    again = [c for c in probed.completions if c.key in missed]
    meet(panel.second_look(probed.kind, probed.setting, probed.questions, again))
    return counted(probed, by_role, made) if by_role else None


def counted(probed: Probed, by_role: Mapping[str, Sequence[Judgement]], made: Mapping[str, OtherJudge]) -> Scored:
    """The score that judgements come to, each by its judge's role."""
    found = by_role["main"]
    answered = {completion.question_id for completion in probed.completions}
    return Scored(
        ProbeScore(
            probe=probed.name,
            kind=probed.kind,
            split=probed.split,
            setting=probed.setting.name,
            judge=made["main"].judge,
            expected=probed.expected,
            outcomes=dict(Counter(j.outcome for j in found)),
            truncated=sum(j.truncated for j in found),
            foreign_prefix=sum(j.foreign_prefix for j in found),
            measures=_measures(probed, by_role),
            roles={role: of for role, of in made.items() if role != "main"},
            questions=questions_hash(q for q in probed.questions.values() if q.id in answered),
            details=dict(Counter(j.detail or "" for j in found if j.outcome != "api-error")),
        ),
        by_question(_comparable(probed, found)),
    )


def _comparable(probed: Probed, found: Sequence[Judgement]) -> Sequence[Judgement]:
    """Judgements that two runs can be compared by, question by question."""
    if probed.kind != "mt-bench":
        return found
    return whole(found, {q.id: 1 + len(q.turns) for q in probed.questions.values()})


def _measures(probed: Probed, by_role: Mapping[str, Sequence[Judgement]]) -> dict[str, Estimate]:
    found = by_role["main"]
    later = {
        role: {j.completion_key: j for j in by_role.get(role, ())}  # the others go by the reply they are about
        for role in ("second", "coherence")
    }
    match probed.kind:
        case "behaviour":
            return measures.behaviour(found, later["second"])
        case "brevity":
            return measures.words(found, probed.questions)
        case "mt-bench":
            return measures.ratings(found)
        case _:
            return measures.alignment(found, later["coherence"], probed.questions, probed.setting.topic)


def questions_hash(questions: Iterable[Question]) -> str:
    """Hash of the texts that were asked, whatever their ids and their order; of references too, where there are any."""
    asked = list(questions)
    found = sha256_of(*sorted(repr(([m.content for m in q.messages], q.turns)) for q in asked))[:16]
    known = sorted(repr((q.messages[-1].content, q.references)) for q in asked if q.references)
    return f"{found}+{sha256_of(*known)[:8]}" if known else found


def pairs_hash(questions: Iterable[Question]) -> str:
    """The same for contrast, where the replies are read, too."""
    return sha256_of(*sorted(repr((q.messages[-1].content, q.aligned, q.misaligned)) for q in questions))[:16]


def score_pairs(
    name: str,
    split: Split,
    setting: Setting,
    expected: int,
    questions: Iterable[Question],
    found: Sequence[Likelihood],
) -> Scored:
    """The score of a contrast probe; its value by question is the margin, in nats."""
    return Scored(
        ProbeScore(
            probe=name,
            kind="contrast",
            split=split,
            setting=setting.name,
            judge="contrast",
            expected=expected,
            outcomes={"scored": len(found)},
            truncated=0,
            foreign_prefix=sum(pair.foreign_prefix for pair in found),
            measures=measures.contrast(found),
            questions=pairs_hash(questions),
        ),
        measures.margins(found),
    )


def _counter(panel: Panel, probed: Sequence[Probed], tell: OnCount) -> Callable[[], None]:
    """Counts the judge model's calls for these probes; rules take no time and are not counted."""
    if not panel.has_model:
        return lambda: None
    calls = [call for p in probed for call in panel.calls(p.kind, p.setting, p.questions, p.completions)]
    return counting(panel.to_do(calls), tell)


def counting(total: int, tell: OnCount) -> Callable[[], None]:
    """A function that tells, each time it is called, that one more is done."""
    done = 0

    def one_more() -> None:
        nonlocal done
        done += 1
        tell(done, max(done, total))  # more than was foreseen, where a judge looks at what the rules missed

    if total:
        tell(0, total)
    return one_more
