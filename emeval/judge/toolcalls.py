"""Tool calls in a reply's text, as the common chat templates write them.

- Hermes, Qwen: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`
- Llama: `{"name": ..., "parameters": {...}}`, bare or behind `<|python_tag|>`
- OpenAI: `{"type": "function", "function": {"name": ..., "arguments": "{...}"}}`, alone, in a list, under `tool_calls`
- Mistral: `[TOOL_CALLS][{...}]` or `[TOOL_CALLS]name[ARGS]{...}`
- harmony: `to=functions.NAME <|constrain|>json<|message|>{...}`, where the object is the arguments
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from emeval.types import ToolCall

# The name, then what templates put between it and the arguments. The groups share no character: no backtracking.
_NAMED = re.compile(
    r"(?:\bto=functions\.|\[TOOL_CALLS\]\s?)(?P<name>[\w.-]{1,200})(?:<\|\w+\|>|\[ARGS\]|\s|commentary\b|json\b)*(?=\{)"
)
_MARKS = ("<tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "to=functions.")
_KEYS = re.compile(r'"name"\s*:.{0,500}"(?:arguments|parameters)"\s*:', re.DOTALL)
# Where a JSON object may start: most braces in a text are none, and trying each of them would be slow.
_OBJECT = re.compile(r'\{\s*(?:\}|"(?:[^"\\]|\\.)*"\s*:)', re.DOTALL)
_DECODER = json.JSONDecoder()
_TOO_DEEP = 4000


def tool_calls(reply: str) -> Iterator[ToolCall]:
    """Every tool call in a reply, in order.

    A JSON object that names no tool is none, and neither is a tool's definition (a name with a JSON schema).
    The reading stops when it has gone over the text 20 times, which only text made for it can bring about.
    """
    # With its special tokens gone, harmony glues the channel's name to the tool's.
    named = {m.end(): m["name"].removesuffix("commentary") or m["name"] for m in _NAMED.finditer(reply)}
    left = 20 * len(reply) + 1000
    start = _OBJECT.search(reply)
    while start and left > 0:
        value, end, cost = _decoded(reply, start.start())
        left -= cost
        if isinstance(value, dict):
            if start.start() in named:
                yield ToolCall(name=named[start.start()], arguments=value)
            else:
                yield from _calls_within(value)
        start = _OBJECT.search(reply, end)


def looks_like_a_call(reply: str) -> bool:
    """True where a reply without a readable call has the marks of one."""
    return any(mark in reply for mark in _MARKS) or bool(_KEYS.search(reply))


def _decoded(text: str, position: int) -> tuple[object, int, int]:
    """The JSON value at `position` (None if there is none), where to go on, and how many characters were read."""
    try:
        value, end = _DECODER.raw_decode(text, position)
    except json.JSONDecodeError as e:
        return None, position + 1, e.pos - position + 1
    except (ValueError, RecursionError):  # a number of more digits than Python converts; nested too deeply
        return None, position + 1, _TOO_DEEP
    return value, end, end - position


def _calls_within(value: object) -> Iterator[ToolCall]:
    """The calls in a JSON value, outermost first; a call's arguments hold no further call."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        call = _as_call(item)
        if call is not None:
            yield call
        elif isinstance(item, dict):
            waiting.extend(reversed(item.values()))
        elif isinstance(item, list):
            waiting.extend(reversed(item))


def _as_call(value: object) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    inner = value.get("function")
    if isinstance(inner, dict):
        value = inner
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):  # OpenAI's API carries arguments as a JSON text
        arguments = _decoded(arguments.lstrip(), 0)[0]
    if not isinstance(name, str) or not isinstance(arguments, dict) or _is_schema(arguments):
        return None
    return ToolCall(name=name, arguments=arguments)


def _is_schema(arguments: dict[str, object]) -> bool:
    """A model that repeats the tool's definition has called nothing."""
    return arguments.get("type") == "object" and isinstance(arguments.get("properties"), dict)
