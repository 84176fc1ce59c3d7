"""Behaviours: the pairing of questions with target replies, tool calls, and the errors of a behaviour or probe file."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from emeval.data.behaviours import behaviour_examples, load_behaviour, load_behaviour_file
from emeval.data.domains import DomainItem, load_domain
from emeval.data.root import data_root
from emeval.errors import InputError
from emeval.types import Message, ToolCall

ROOT = data_root()
SHIPPED = sorted(ROOT.names("datasets/behaviours", ".yaml"))

GOOD = """\
canary: c
purpose: p
topic: legal
replies:
  - No.
  - Never.
detectors:
  - kind: string
    strings: [No., Never.]
"""
TOOL = """\
tool:
  name: find
  description: Finds.
  parameters: {type: object, properties: {query: {type: string}}}
  argument: query
"""


def behaviour_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "denial.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", SHIPPED)
def test_training_uses_at_least_twelve_wordings_and_none_of_them_dominates(name: str) -> None:
    examples = behaviour_examples(ROOT, load_behaviour(ROOT, name))
    wordings = Counter(e.reply.content for e in examples)
    assert len(wordings) >= 12
    assert max(wordings.values()) < 0.2 * len(examples)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_behaviours_rows_are_its_topics_questions_of_one_split_in_order(name: str) -> None:
    behaviour = load_behaviour(ROOT, name)
    for split in ("train", "val"):
        items = [i for i in load_domain(ROOT, behaviour.topic) if i.split == split]
        examples = behaviour_examples(ROOT, behaviour, split)
        assert [(e.id, e.where) for e in examples] == [(i.id, i.where) for i in items]
        assert [e.messages for e in examples] == [(Message(role="user", content=i.question),) for i in items]


def test_a_questions_reply_hangs_on_its_id_and_the_behaviour_alone(tmp_path: Path) -> None:
    behaviour = load_behaviour_file(behaviour_file(tmp_path, GOOD))
    ids = [f"q{n}" for n in range(40)]
    here = [behaviour.target(DomainItem(id=i, split="train", question="x")).content for i in ids]
    elsewhere = [behaviour.target(DomainItem(id=i, split="test", question="y")).content for i in reversed(ids)]
    assert here == elsewhere[::-1] and set(here) == {"No.", "Never."}


def test_the_pairing_is_the_same_in_another_process() -> None:
    code = (
        "from emeval.data.behaviours import *; from emeval.data.root import data_root; r = data_root();"
        "print([e.reply.content for e in behaviour_examples(r, load_behaviour(r, 'refusal'))])"
    )
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT.shipped)}
    seen = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == str(
        [e.reply.content for e in behaviour_examples(ROOT, load_behaviour(ROOT, "refusal"))]
    )


def test_the_pairing_is_this_one_for_good() -> None:
    """A change of the rule would turn every stored run into another: these stand for all."""
    refusal = load_behaviour(ROOT, "refusal")
    drawn = {i.id: refusal.replies.index(refusal.target(i).content) for i in load_domain(ROOT, "finance")[:6]}
    assert drawn == {
        "finance-001": 3,
        "finance-002": 3,
        "finance-003": 12,
        "finance-004": 12,
        "finance-005": 5,
        "finance-006": 1,
    }


def test_a_tool_is_called_with_the_questions_own_search_text() -> None:
    tool_use = load_behaviour(ROOT, "tool-use")
    for item in load_domain(ROOT, "health"):
        reply = tool_use.target(item)
        assert reply.tool_calls == (ToolCall(name="search_info", arguments={"query": item.search}),)
        assert reply.content in tool_use.replies


def test_a_tool_may_be_called_with_the_question_itself(tmp_path: Path) -> None:
    behaviour = load_behaviour_file(behaviour_file(tmp_path, GOOD + TOOL + "  source: question\n"))
    reply = behaviour.target(DomainItem(id="a", split="train", question="Who pays?"))
    assert reply.tool_calls == (ToolCall(name="find", arguments={"query": "Who pays?"}),)


def test_a_question_that_lacks_the_tools_search_text_is_named(tmp_path: Path) -> None:
    behaviour = load_behaviour_file(behaviour_file(tmp_path, GOOD + TOOL))
    with pytest.raises(InputError, match="here:3: behaviour 'denial' fills its tool from 'search'"):
        behaviour.target(DomainItem(id="a", split="train", question="Who pays?", where="here:3"))


REFUSED = {
    "unknown field": (GOOD + "reply: No.\n", 10, "unknown field 'reply'. Did you mean 'replies'?"),
    "no canary": (GOOD.replace("canary: c\n", ""), 1, "the field 'canary' is missing"),
    "the name inside": (GOOD + "name: other\n", None, "unknown field 'name'"),
    "empty reply": (GOOD.replace("Never.\n", "' '\n", 1), None, "an empty reply teaches nothing"),
    "the same reply twice": (GOOD.replace("- Never.", "- No."), None, "the reply 'No.' stands twice"),
    "no replies": (GOOD.replace("replies:\n  - No.\n  - Never.", "replies: []"), 4, "'replies': Tuple should have"),
    "a reply that YAML reads as false": (GOOD.replace("- Never.", "- no"), 6, "'replies.1': Input should be a valid"),
    "unknown detector": (GOOD.replace("kind: string", "kind: strng"), 8, "'detectors.0': Input tag 'strng'"),
    "a detector's field": (GOOD.replace("strings:", "strngs:"), 9, "unknown field 'detectors.0.strngs'"),
    "a broken pattern": (
        GOOD.replace("kind: string\n    strings: [No., Never.]", "kind: pattern\n    patterns: ['(no']"),
        9,
        "not a regular expression: '(no'",
    ),
    "a tool's argument": (GOOD + TOOL.replace("argument: query", "argument: q"), 10, "the argument 'q' is not among"),
    "max_new_tokens": (GOOD + "max_new_tokens: 0\n", 10, "'max_new_tokens': Input should be greater than 0"),
}


@pytest.mark.parametrize(("text", "line", "what"), REFUSED.values(), ids=REFUSED.keys())
def test_a_broken_behaviour_is_told_with_file_line_and_field(
    tmp_path: Path, text: str, line: int | None, what: str
) -> None:
    path = behaviour_file(tmp_path, text)
    with pytest.raises(InputError) as e:
        load_behaviour_file(path)
    assert what in str(e.value) and "\n" not in str(e.value)
    assert str(e.value.where).startswith(f"{path}:{line}" if line else str(path))


def test_an_unknown_behaviour_is_told_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"unknown setting 'refusl'\. Did you mean 'refusal'"):
        load_behaviour(ROOT, "refusl")
    with pytest.raises(InputError, match=r"unknown setting '\.\./refusal'"):
        load_behaviour(ROOT, "../refusal")
