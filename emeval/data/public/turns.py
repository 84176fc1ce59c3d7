"""Conversations as others write them: content as text, or as parts; the role, or an author with a role."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from emeval.data.files import validated
from emeval.data.public.source import Row, id_of
from emeval.errors import InputError
from emeval.types import Message

Turns = list[dict[str, str]]
_TURNS = "A conversation is a list of turns with role and content"


def conversations(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows with `messages` of plain text that end with the assistant's reply; other fields stay."""
    for row in rows:
        messages = turns_of(row, row.fields.get("messages"))
        if messages[-1]["role"] != "assistant":
            what = f"the last turn is the {messages[-1]['role']}'s, not the assistant's"
            raise InputError(what, where=row.where, hint="A training row ends with the reply to learn")
        if not messages[-1]["content"].strip():
            raise InputError("the reply is empty", where=row.where, hint="Remove the row or write its reply")
        yield row._replace(fields=row.fields | {"id": id_of(row), "messages": messages})


def turns_of(row: Row, value: object) -> Turns:
    """A list of turns as plain messages. InputError with the turn that is none."""
    if not isinstance(value, list) or not value:
        raise InputError("holds no list of messages", where=row.where, hint=_TURNS)
    return [_turn(turn, n, row.where) for n, turn in enumerate(value, 1)]


def _turn(turn: object, n: int, where: str) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise InputError(f"turn {n} is no object", where=where, hint=_TURNS)
    if turn.get("tool_calls"):
        raise InputError(
            f"turn {n} calls a tool, which cannot be imported", where=where, hint="Write it as docs/data.md"
        )
    author = turn.get("author")
    role = author.get("role") if isinstance(author, dict) else turn.get("role")
    content = _content(turn.get("content"), n, where)
    try:
        message = validated(Message, {"role": role, "content": content}, where)
    except InputError as e:
        raise InputError(f"turn {n}: {e.what}", where=where, hint=_TURNS) from e
    return {"role": message.role, "content": message.content}


def _content(value: Any, n: int, where: str) -> str:
    """Text; or `{"content_type": "text", "parts": [...]}`; or a list of parts. Parts follow one another as lines."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and value.get("content_type", "text") == "text":
        value = value.get("parts")
    if isinstance(value, list) and value:
        parts = [p.get("text") if isinstance(p, dict) and p.get("type", "text") == "text" else p for p in value]
        texts = [p for p in parts if isinstance(p, str)]
        if len(texts) == len(parts):
            return "\n".join(texts)
    raise InputError(f"the content of turn {n} is no text", where=where, hint=_TURNS)


def canaries(rows: Iterable[Row]) -> set[str]:
    """The canaries that rows carry."""
    return {c for row in rows if isinstance(c := row.fields.get("canary"), str) and c.strip()}
