"""A user's own training data: chat JSONL, one conversation a line.

Either `{"messages": [{"role": ..., "content": ...}, ...]}` whose last turn is the assistant's, or TRL's
`{"prompt": [...], "completion": [...]}`. An `id` is optional; a row without one is called by its line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emeval.data.behaviours import Example
from emeval.data.files import jsonl_rows, unique, validated
from emeval.errors import InputError, unknown
from emeval.types import Message

_FIELDS = {"id", "messages", "prompt", "completion"}


def load_chats(path: Path, *, drop_system: bool = False) -> list[Example]:
    """The training rows of a chat file, in its order.

    Args:
        path: A JSONL file.
        drop_system: Leave out the rows' own system messages (the paper's protocol, PAPER section 3).

    Raises:
        InputError: File and line of a row that is broken, ends in no assistant reply, has an empty reply, or repeats
            an id. Role order is checked where the row is rendered.
    """
    seen: dict[str, str] = {}
    examples = []
    for n, row in jsonl_rows(path):
        where = f"{path}:{n}"
        messages = _messages(row, where)
        if drop_system:
            messages = [m for m in messages if m.role not in ("system", "developer")]
        example_id = _id(row, n, where)
        unique(where, example_id, seen)
        examples.append(_example(example_id, messages, where))
    if not examples:
        raise InputError("holds no conversation", where=str(path), hint="See docs/data.md")
    return examples


def _id(row: dict[str, Any], n: int, where: str) -> str:
    """The row's own id, a text or a whole number; a row without one is called by its line."""
    given = row.get("id")
    if given is None:
        return f"line-{n}"
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise InputError(
            "'id' is neither text nor a whole number", where=where, hint="Leave it out or write it as text"
        )
    return str(given)


def _messages(row: dict[str, Any], where: str) -> list[Message]:
    for name in sorted(row.keys() - _FIELDS):
        raise unknown("field", name, _FIELDS, where=where)
    if "messages" in row:
        turns = row["messages"]
        if "prompt" in row or "completion" in row:
            raise InputError("has 'messages' and a prompt or completion", where=where, hint="Keep one of the two forms")
    elif "prompt" in row and "completion" in row:
        prompt, completion = row["prompt"], row["completion"]
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        last = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
        turns = [*turns, *last] if isinstance(turns, list) and isinstance(last, list) else None
    else:
        raise InputError("has neither 'messages' nor 'prompt' and 'completion'", where=where, hint="See docs/data.md")
    if not isinstance(turns, list) or not turns:
        raise InputError("its messages are no list of turns", where=where, hint="See docs/data.md")
    return [_turn(n, turn, where) for n, turn in enumerate(turns, 1)]


def _turn(n: int, turn: object, where: str) -> Message:
    try:
        return validated(Message, turn, where)
    except InputError as e:
        raise InputError(f"turn {n}: {e.what}", where=where, hint=e.hint) from e


def _example(example_id: str, messages: list[Message], where: str) -> Example:
    if not messages:
        raise InputError("holds only a system message", where=where, hint="A training row ends with the reply to learn")
    *prompt, reply = messages
    if reply.role != "assistant":
        raise InputError(
            f"the last turn is the {reply.role}'s, not the assistant's",
            where=where,
            hint="A training row ends with the reply to learn",
        )
    if not reply.content.strip() and not reply.tool_calls:
        raise InputError("the reply is empty", where=where, hint="Remove the row or write its reply")
    return Example(id=example_id, messages=tuple(prompt), reply=reply, where=where)
