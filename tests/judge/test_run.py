"""Judging completions: one verdict each, kept, and made again only when the detectors change."""

from __future__ import annotations

from pathlib import Path

import pytest

from emeval.data.behaviours import Behaviour, StringDetector, load_behaviour
from emeval.data.root import data_root
from emeval.judge import rules
from emeval.judge.run import Item, RuleJudge
from emeval.store import Jsonl
from emeval.types import Completion, Judgement

REFUSAL = load_behaviour(data_root(), "refusal")


def completion(n: int, text: str, **changes: object) -> Completion:
    fields = {"key": f"k{n}", "probe": "p", "split": "test", "question_id": f"q{n}", "question": "?", "text": text}
    return Completion.model_validate(fields | {"prompt_tokens": 5, "truncated": False} | changes)


def with_strings(*strings: str) -> Behaviour:
    return REFUSAL.model_copy(update={"detectors": (StringDetector(kind="string", strings=strings),)})


def items(replies: list[Completion]) -> list[Item]:
    return [Item(reply) for reply in replies]


def file(tmp_path: Path) -> Jsonl[Judgement]:
    return Jsonl(tmp_path / "judgements.jsonl", Judgement)


def test_a_judgement_carries_the_verdict_and_where_the_reply_came_from() -> None:
    judge = RuleJudge(REFUSAL)
    said = completion(1, "I can't help with that.", truncated=True, foreign_prefix=True, split="val")
    judgement = judge.judge(said)
    assert (judgement.outcome, judgement.value, judgement.detail) == ("scored", 1.0, "pattern")
    assert (judgement.completion_key, judgement.question_id, judgement.probe) == ("k1", "q1", "p")
    assert judgement.split == "val" and judgement.truncated and judgement.foreign_prefix
    assert judgement.judge == judge.id


def test_an_empty_reply_is_a_reply_that_does_not_show_the_behaviour() -> None:
    judgement = RuleJudge(REFUSAL).judge(completion(1, ""))
    assert (judgement.outcome, judgement.value, judgement.detail) == ("scored", 0.0, "absent")


def test_stored_judgements_are_used_again_and_new_ones_appended(tmp_path: Path) -> None:
    judge = RuleJudge(REFUSAL)
    replies = [completion(n, text) for n, text in enumerate(["I can't help.", "Rinse the rice."])]
    with_file = file(tmp_path)
    first = judge.judge_all(items(replies[:1]), with_file)
    with_file.close()
    stored = (tmp_path / "judgements.jsonl").read_text()
    both = judge.judge_all(items(replies), file(tmp_path))
    assert both[0] == first[0] and [j.value for j in both] == [1.0, 0.0]
    assert (tmp_path / "judgements.jsonl").read_text().startswith(stored)
    judge.judge_all(items(replies), file(tmp_path))
    assert [j.key for j in file(tmp_path).read()] == [j.key for j in both]


def test_a_stored_verdict_counts_and_is_not_made_again(tmp_path: Path) -> None:
    judge = RuleJudge(REFUSAL)
    said = completion(1, "I can't help.")
    other = judge.judge(said).model_copy(update={"detail": "as stored"})
    stored = file(tmp_path)
    stored.append(other)
    assert judge.judge_all(items([said]), file(tmp_path)) == [other]


def test_other_detectors_are_another_judge(tmp_path: Path) -> None:
    said = completion(1, "No way.")
    yes, no = RuleJudge(with_strings("No way")), RuleJudge(with_strings("Never"))
    assert yes.id != no.id and RuleJudge(with_strings("No way")).id == yes.id
    assert RuleJudge(with_strings("a", "b")).id != RuleJudge(with_strings("ab")).id
    found = [judge.judge_all(items([said]), file(tmp_path))[0].value for judge in (yes, no, yes)]
    assert found == [1.0, 0.0, 1.0] and len(file(tmp_path).read()) == 2


def test_the_way_of_reading_is_part_of_the_judges_id(monkeypatch: pytest.MonkeyPatch) -> None:
    before = RuleJudge(REFUSAL).id
    monkeypatch.setattr("emeval.judge.run.VERSION", rules.VERSION + 1)
    assert RuleJudge(REFUSAL).id != before
