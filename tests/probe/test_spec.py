"""Probe files: a list of questions or the topic's own, and the line of what is wrong in one."""

from __future__ import annotations

from pathlib import Path

import pytest

from emeval.data.root import data_root
from emeval.errors import InputError
from emeval.probe.spec import load_probe, load_probe_file

HEAD = "kind: behaviour\ncanary: c\npurpose: p\n"


def probe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "small-talk.yaml"
    path.write_text(text)
    return path


def test_a_probe_is_named_by_its_file_and_lists_its_questions(tmp_path: Path) -> None:
    turns = "[{role: system, content: Be brief.}, {role: user, content: Hi}]"
    questions = f"questions:\n  - {{id: a, question: 'Hello?'}}\n  - {{id: b, split: val, messages: {turns}}}\n"
    spec = load_probe_file(probe(tmp_path, HEAD + questions))
    assert spec.name == "small-talk" and spec.questions != "topic"
    plain, own_system = spec.questions
    assert (plain.question, plain.split) == ("Hello?", "test")
    assert [m.role for m in own_system.messages] == ["system", "user"] and own_system.split == "val"


def test_the_word_topic_stands_for_the_topics_own_questions() -> None:
    assert load_probe(data_root(), "on-topic").questions == "topic"


REFUSED = {
    "unknown kind": (HEAD.replace("behaviour", "behavior") + "questions: topic", None, "Did you mean 'behaviour'?"),
    "no kind": (HEAD.replace("kind: behaviour\n", "") + "questions: topic", 1, "the field 'kind' is missing"),
    "unknown word": (HEAD + "questions: topics", 4, "'questions': Input should be 'topic'"),
    "a number": (HEAD + "questions: 3", 4, "'questions': Input should be a valid"),
    "no question": (HEAD + "questions: []", 4, "'questions': Tuple should have at least 1 item"),
    "misspelt": (HEAD + "question: topic", 4, "unknown field 'question'. Did you mean 'questions'?"),
    "a question's field": (
        HEAD + "questions:\n  - {id: a, question: x}\n  - {id: b, qestion: x}",
        6,
        "'questions.1.qestion'",
    ),
    "neither": (HEAD + "questions:\n  - {id: a}", 5, "'questions.0': give one of 'question', 'messages' and 'turns'"),
    "both": (
        HEAD + "questions:\n  - {id: a, question: x, messages: [{role: user, content: x}]}",
        5,
        "give one of 'question', 'messages' and 'turns'",
    ),
    "blank": (HEAD + "questions:\n  - {id: a, question: ' '}", 5, "the question is empty"),
    "ends with a reply": (
        HEAD + "questions:\n  - {id: a, messages: [{role: assistant, content: x}]}",
        5,
        "the last turn is the assistant's, not the user's",
    ),
    "split": (HEAD + "questions:\n  - {id: a, question: x, split: dev}", 5, "'questions.0.split': Input should be"),
}


@pytest.mark.parametrize(("text", "line", "what"), REFUSED.values(), ids=REFUSED.keys())
def test_a_broken_probe_is_told_with_file_and_line(tmp_path: Path, text: str, line: int | None, what: str) -> None:
    path = probe(tmp_path, text)
    with pytest.raises(InputError) as e:
        load_probe_file(path)
    assert what in str(e.value) and "\n" not in str(e.value)
    assert e.value.where == (f"{path}:{line}" if line else str(path))


def test_a_duplicate_id_is_told_with_both_lines(tmp_path: Path) -> None:
    rows = "".join(f"  - {{id: {name}, question: x}}\n" for name in "aba")
    path = probe(tmp_path, f"{HEAD}questions:\n{rows}")
    with pytest.raises(InputError, match=rf"{path}:7: duplicate id 'a', first at {path}:5"):
        load_probe_file(path)


def test_an_unknown_probe_is_told_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"unknown probe 'of-topic'\. Did you mean 'off-topic'"):
        load_probe(data_root(), "of-topic")
