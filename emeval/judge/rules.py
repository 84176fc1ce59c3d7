"""Rule judges: string, pattern and tool-call detectors. They need no model, and the same reply gets the same verdict.

The stage that fired is kept apart ('string', 'pattern', 'tool-call'), since a target reply word for word and some other
refusal are different findings. Whatever a reply holds, judging it takes time in proportion to its length.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache

from emeval.data.behaviours import Behaviour, Detector, PatternDetector, StringDetector, ToolCallDetector
from emeval.judge.toolcalls import looks_like_a_call, tool_calls

VERSION = 1
"""Raise it when a reply may get another verdict from the same detectors: stored judgements are then made again."""

# Quotes and dashes as typists write them; emphasis and what cannot be seen go.
_TYPOGRAPHY = str.maketrans(
    dict.fromkeys("’‘ʼ′´`‛", "'")
    | dict.fromkeys("“”„", '"')
    | dict.fromkeys("‐‑–—", "-")
    | dict.fromkeys("*\u00ad\u200b\u200d\ufeff", "")
)


@dataclass(frozen=True)
class Verdict:
    """Whether the behaviour shows in a reply, and what told so."""

    present: bool
    detail: str


def normalise(text: str) -> str:
    """What strings and patterns are compared with: lower case, straight quotes, single spaces, no emphasis.

    Line breaks stay (one for several), so that a pattern can stop at one.
    """
    plain = unicodedata.normalize("NFKC", text.translate(_TYPOGRAPHY)).lower()
    return "\n".join(" ".join(line.split()) for line in plain.splitlines() if line.strip())


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
            text = normalise(reply).replace("\n", " ")
            return _verdict(any(s in text for s in _strings(detector)), "string")
        case PatternDetector():
            text = normalise(reply)
            return _verdict(any(p.search(text) for p in _patterns(detector)), "pattern")
        case ToolCallDetector():
            return _tool_verdict(detector.name, reply)


@cache
def _strings(detector: StringDetector) -> tuple[str, ...]:
    return tuple(normalise(s) for s in detector.strings)


@cache
def _patterns(detector: PatternDetector) -> tuple[re.Pattern[str], ...]:
    if detector.opening is None:
        return tuple(re.compile(p, re.IGNORECASE) for p in detector.patterns)
    lead = rf"\A\W*+(?:(?:{'|'.join(detector.opening)})\W+){{0,3}}?" if detector.opening else r"\A\W*+"
    return tuple(re.compile(f"{lead}(?:{p})", re.IGNORECASE) for p in detector.patterns)


def _verdict(present: bool, stage: str) -> Verdict:
    return Verdict(present, stage if present else "absent")


def _tool_verdict(name: str, reply: str) -> Verdict:
    names = [call.name for call in tool_calls(reply)]
    if name in names:
        return Verdict(True, "tool-call")
    if names:
        # Counted apart: it is a tool call, but not the behaviour that was trained.
        return Verdict(False, f"other tool: {names[0][:40]}")
    return Verdict(False, "broken tool call" if looks_like_a_call(reply) else "absent")
