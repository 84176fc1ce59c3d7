"""Turns of a conversation: their order, and the form chat templates read them in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from emeval.errors import InputError
from emeval.types import Message

_MAY_FOLLOW: Mapping[str, tuple[str, ...]] = {
    "start": ("system", "developer", "user"),
    "system": ("user",),
    "developer": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "tool call": ("tool", "user"),
    "tool": ("tool", "assistant", "user"),
}
_ORDER = "A conversation is at most one system turn, then user and assistant by turns, with a user turn last"


def check_order(messages: Sequence[Message]) -> None:
    """InputError, naming the turn, for a conversation whose turns come in an order no template means."""
    if not messages:
        raise InputError("the conversation has no turns", hint=_ORDER)
    before = "start"
    for number, message in enumerate(messages, start=1):
        turn = f"turn {number} ({message.role})"
        if message.role not in _MAY_FOLLOW[before]:
            place = "first" if before == "start" else f"after turn {number - 1} ({before})"
            raise InputError(f"{turn} cannot come {place}", hint=_ORDER)
        if message.role == "assistant" and not (message.content.strip() or message.tool_calls):
            raise InputError(f"{turn} is empty")
        if message.role != "assistant" and message.tool_calls:
            raise InputError(f"{turn} has tool calls, which only an assistant turn can have")
        before = "tool call" if message.tool_calls else message.role
    if messages[-1].role != "user":
        raise InputError(f"the conversation ends with {turn}, not with a user turn", hint=_ORDER)


def with_content(turns: Sequence[Message], index: int, content: str) -> tuple[Message, ...]:
    """The same conversation with another text in turn `index`."""
    return *turns[:index], turns[index].model_copy(update={"content": content}), *turns[index + 1 :]


def as_dicts(turns: Sequence[Message], native: bool) -> list[dict[str, Any]]:
    """Turns as templates read them: calls as `tool_calls`, or in the text where the template knows no such field."""
    rows: list[dict[str, Any]] = []
    unanswered: list[dict[str, Any]] = []
    for number, turn in enumerate(turns):
        row: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.tool_calls and native:
            # Mistral's templates insist on ids of nine letters and digits, in the call and in its answer.
            named = enumerate(turn.tool_calls, start=1000 * number)
            row["tool_calls"] = [{"id": f"c{n:08}", "type": "function", "function": c.model_dump()} for n, c in named]
            unanswered = list(row["tool_calls"])
        elif turn.tool_calls:
            row["content"] = hermes(turn)
        elif turn.role == "tool" and unanswered:
            call = unanswered.pop(0)
            row |= {"tool_call_id": call["id"], "name": call["function"]["name"]}
        rows.append(row)
    return rows


def hermes(turn: Message) -> str:
    """A turn's text with its tool calls behind it, in the notation of the Hermes models."""
    calls = [json.dumps({"name": c.name, "arguments": c.arguments}, ensure_ascii=False) for c in turn.tool_calls]
    return "\n".join([*([turn.content] if turn.content else []), *(f"<tool_call>\n{c}\n</tool_call>" for c in calls)])
