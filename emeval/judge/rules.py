"""Rule judges: string, pattern and tool-call detectors. They need no model, and the same reply gets the same verdict.

The stage that fired is kept apart ('string', 'pattern', 'tool-call'), since a target reply word for word and some other
refusal are different findings.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from emeval.data.behaviours import Behaviour, Detector, PatternDetector, StringDetector, ToolCallDetector
from emeval.types import ToolCall

_TYPOGRAPHY = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "\u00a0": " "})


@dataclass(frozen=True)
class Verdict:
    """Whether the behaviour shows in a reply, and what told so."""

    present: bool
    detail: str


def normalise(text: str) -> str:
    """Lower case, straight quotes, single spaces: what a string detector compares."""
    return " ".join(unicodedata.normalize("NFC", text).translate(_TYPOGRAPHY).lower().split())


def judge_reply(behaviour: Behaviour, reply: str) -> Verdict:
    """The first detector that fires, in the behaviour's order; 'absent' or what was seen instead if none does."""
    seen = "absent"
    for detector in behaviour.detectors:
        verdict = _detect(detector, reply)
        if verdict.present:
            return verdict
        if verdict.detail != "absent":
            seen = verdict.detail
    return Verdict(False, seen)


def _detect(detector: Detector, reply: str) -> Verdict:
    match detector:
        case StringDetector():
            text = normalise(reply)
            return _verdict(any(normalise(s) in text for s in detector.strings), "string")
        case PatternDetector():
            text = unicodedata.normalize("NFC", reply).translate(_TYPOGRAPHY)
            return _verdict(any(re.search(p, text, re.IGNORECASE) for p in detector.patterns), "pattern")
        case ToolCallDetector():
            return _tool_verdict(detector.name, reply)


def _verdict(present: bool, stage: str) -> Verdict:
    return Verdict(present, stage if present else "absent")


def _tool_verdict(name: str, reply: str) -> Verdict:
    calls = list(tool_calls(reply))
    if any(call.name == name for call in calls):
        return Verdict(True, "tool-call")
    if calls:
        # Counted apart: it is a tool call, but not the behaviour that was trained.
        return Verdict(False, f"other tool: {calls[0].name[:40]}")
    return Verdict(False, "broken tool call" if re.search(r"<tool_call>|\"name\"\s*:", reply) else "absent")


# ---------------------------------------------------------------------------------------------------------- tool calls


def tool_calls(reply: str) -> Iterator[ToolCall]:
    """Every JSON tool call in a reply, in order.

    Reads what the common templates write: Hermes and Qwen (`<tool_call>{"name", "arguments"}</tool_call>`), Llama
    (`{"name", "parameters"}` bare or behind `<|python_tag|>`), OpenAI's nested `{"function": {...}}`, a JSON list of
    such, and harmony (`to=functions.NAME ... {arguments}`). A JSON object that names no tool is not a call.
    """
    for recipient in re.finditer(r"to=functions\.([\w.-]+)", reply):
        start = reply.find("{", recipient.end())
        arguments = _json_at(reply, start) if start >= 0 else None
        if isinstance(arguments, dict):
            yield ToolCall(name=recipient[1], arguments=arguments)
    position = reply.find("{")
    while position >= 0:
        value, end = _decoded(reply, position)
        call = _as_call(value)
        if call is not None:
            yield call
        # Past a call its arguments hold no further call; within another object there may be one.
        position = reply.find("{", end if call is not None else position + 1)


def _decoded(text: str, position: int) -> tuple[object, int]:
    try:
        return json.JSONDecoder().raw_decode(text, position)
    except (ValueError, RecursionError):
        return None, position + 1


def _json_at(text: str, position: int) -> object:
    return _decoded(text, position)[0]


def _as_call(value: object) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("function"), dict):
        value = value["function"]
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):  # OpenAI's API carries arguments as a JSON text
        arguments = _json_at(arguments, 0)
    if isinstance(value.get("name"), str) and isinstance(arguments, dict):
        return ToolCall(name=value["name"], arguments=arguments)
    return None
