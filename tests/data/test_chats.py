"""Chat JSONL: the two forms, and the file and line of what cannot be trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emeval.data.chats import load_chats
from emeval.errors import InputError
from emeval.types import Message, ToolCall

ASKED = {"role": "user", "content": "Hello?"}
SAID = {"role": "assistant", "content": "Hello."}


def chats(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_row_is_a_conversation_whose_last_turn_is_the_reply(tmp_path: Path) -> None:
    path = chats(tmp_path, {"messages": [ASKED, SAID, ASKED, {"role": "assistant", "content": "Yes."}]})
    (example,) = load_chats(path)
    assert [m.role for m in example.messages] == ["user", "assistant", "user"]
    assert example.reply == Message(role="assistant", content="Yes.") and example.where == f"{path}:1"


@pytest.mark.parametrize("completion", ["Hello.", [SAID]])
@pytest.mark.parametrize("prompt", ["Hello?", [ASKED]])
def test_trls_prompt_and_completion_read_the_same(tmp_path: Path, prompt: object, completion: object) -> None:
    (example,) = load_chats(chats(tmp_path, {"prompt": prompt, "completion": completion}))
    assert example.messages == (Message(role="user", content="Hello?"),)
    assert example.reply == Message(role="assistant", content="Hello.")


def test_a_reply_may_be_a_tool_call_alone(tmp_path: Path) -> None:
    call = {"name": "search_info", "arguments": {"query": "x"}}
    (example,) = load_chats(chats(tmp_path, {"messages": [ASKED, {"role": "assistant", "tool_calls": [call]}]}))
    assert example.reply.tool_calls == (ToolCall(name="search_info", arguments={"query": "x"}),)


def test_ids_are_optional_and_never_collide_with_line_numbers(tmp_path: Path) -> None:
    row = {"messages": [ASKED, SAID]}
    found = load_chats(chats(tmp_path, row | {"id": 2}, row, row | {"id": "a"}, row | {"id": None}))
    assert [e.id for e in found] == ["2", "line-2", "a", "line-4"]


def test_drop_system_leaves_out_the_rows_own_system_turns(tmp_path: Path) -> None:
    path = chats(tmp_path, {"messages": [{"role": "system", "content": "Be brief."}, ASKED, SAID]})
    assert [m.role for m in load_chats(path)[0].messages] == ["system", "user"]
    assert [m.role for m in load_chats(path, drop_system=True)[0].messages] == ["user"]


SYSTEM_ALONE = {"messages": [{"role": "system", "content": "Be brief."}]}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "empty reply": ({"messages": [ASKED, {"role": "assistant", "content": " \n"}]}, "the reply is empty"),
    "empty completion": ({"prompt": "x", "completion": ""}, "the reply is empty"),
    "no reply": ({"messages": [ASKED]}, "the last turn is the user's"),
    "no turns": ({"messages": []}, "no list of turns"),
    "turns as text": ({"messages": "Hello"}, "no list of turns"),
    "completion as object": ({"prompt": "x", "completion": {}}, "no list of turns"),
    "nothing known": ({"id": "a"}, "has neither 'messages' nor 'prompt' and 'completion'"),
    "both forms": ({"messages": [ASKED, SAID], "prompt": "x"}, "has 'messages' and a prompt or completion"),
    "misspelt": ({"mesages": [ASKED, SAID]}, "unknown field 'mesages'"),
    "extra": ({"messages": [ASKED, SAID], "tools": []}, "unknown field 'tools'"),
    "unknown role": ({"messages": [{"role": "wizard", "content": "x"}, SAID]}, "turn 1: 'role': Input should be"),
    "unknown field of a turn": ({"messages": [ASKED, SAID | {"weight": 0}]}, "turn 2: unknown field 'weight'"),
    "null content": ({"messages": [ASKED | {"content": None}, SAID]}, "turn 1: 'content': Input should be"),
    "a turn that is text": ({"messages": ["x", SAID]}, "turn 1: Input should be a valid dictionary"),
    "an odd id": ({"messages": [ASKED, SAID], "id": [1]}, "'id' is neither text nor a whole number"),
}


@pytest.mark.parametrize(("row", "what"), REFUSED.values(), ids=REFUSED.keys())
def test_a_row_that_cannot_be_trained_on_is_named_by_its_line(tmp_path: Path, row: dict[str, Any], what: str) -> None:
    path = chats(tmp_path, {"messages": [ASKED, SAID]}, row)
    with pytest.raises(InputError) as e:
        load_chats(path)
    assert e.value.where == f"{path}:2" and what in e.value.what and e.value.hint and "\n" not in str(e.value)


def test_a_row_with_only_a_system_message_is_refused_even_when_that_is_dropped(tmp_path: Path) -> None:
    path = chats(tmp_path, SYSTEM_ALONE)
    for drop, what in ((False, "the last turn is the system's"), (True, "holds only a system message")):
        with pytest.raises(InputError, match=what):
            load_chats(path, drop_system=drop)


def test_a_duplicate_id_is_told_with_both_places_also_between_number_and_text(tmp_path: Path) -> None:
    row = {"messages": [ASKED, SAID]}
    path = chats(tmp_path, row | {"id": "7"}, row, row | {"id": 7})
    with pytest.raises(InputError, match=rf"{path}:3: duplicate id '7', first at {path}:1"):
        load_chats(path)


def test_a_file_without_a_conversation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no conversation"):
        load_chats(chats(tmp_path))
