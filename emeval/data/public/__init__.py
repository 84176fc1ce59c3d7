"""Published question sets and training sets, read as published: by a path, and by what the file looks like.

A format is a module with `read(source, options)`, which gives a `Published`. To add one: the module, a line in
`FORMATS`, and a line in `recognise` if its files can be told from the others'.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from emeval.data.public.judges import fragment, judge_prompts
from emeval.data.public.published import Options, Published, Records
from emeval.data.public.source import Source, opened, rows
from emeval.errors import InputError, unknown

__all__ = ["FORMATS", "Options", "Published", "judge_prompts", "load_published"]

FORMATS = {
    "betley": "emeval.data.public.betley",
    "core-misalignment": "emeval.data.public.core_misalignment",
    "persona-features": "emeval.data.public.persona_features",
    "model-organisms": "emeval.data.public.model_organisms",
    "mt-bench": "emeval.data.public.mtbench",
    "popqa": "emeval.data.public.popqa",
    "chats": "emeval.data.public.chats",
}
MAPPED = ("chats", "persona-features", "model-organisms")
"""Formats whose columns a mapping may name."""

_CHAT_ONLY = {"messages", "id"}


def load_published(
    path: str | Path, format: str | None = None, options: Options | None = None, *, against: Path | None = None
) -> Published:
    """A published file, read as published.

    Args:
        path: The file; `FILE.zip#MEMBER` names one of several files in a zip.
        format: A name in `FORMATS`; by default what the content looks like.
        options: References, password, column mapping and what to read it as.
        against: A published file of test questions; entries that ask one of them are left out.

    Raises:
        InputError: File and line of what cannot be read; a format that is not known or not recognised.
    """
    if format is not None and format not in FORMATS:
        raise unknown("format", format, FORMATS)
    file, inside = fragment(path)
    source = replace(opened(file), inside=inside)
    options = options or Options()
    format = format or recognise(source, options)
    if options.references and format != "mt-bench":
        raise InputError(f"{format} has no references", where=str(file), hint="Leave the references out")
    if options.mapping and format not in MAPPED:
        raise InputError(f"{format} says itself what is what", where=str(file), hint="Leave --map out")
    found: Published = import_module(FORMATS[format]).read(source, options)
    return _without(found, load_published(against), str(against)) if against else found


def recognise(source: Source, options: Options) -> str:
    """The format that a file's content looks like. A column mapping is for conversations and tables alone."""
    if source.data.startswith(b"PK"):
        return "persona-features"
    if _is_yaml(source):
        return "betley"
    first = next(rows(source), None)
    found = _by_fields(first.fields) if first else None
    if options.mapping and found not in MAPPED:
        return "chats"
    if found is None:
        hint = f"Name its format ({', '.join(FORMATS)}) or its columns with --map"
        raise InputError("no published format is recognised", where=source.where, hint=hint)
    return found


def _is_yaml(source: Source) -> bool:
    """A list of entries: neither JSON nor a table begins with `- `."""
    if source.data.startswith(b"PAR1"):
        return False
    lines = (line for line in source.text.split("\n") if line.strip() and not line.startswith(("#", "---", "%")))
    return next(lines, "").startswith("- ")


def _by_fields(fields: dict[str, Any]) -> str | None:
    """By the fields of the first row."""
    names = fields.keys()
    if {"question_id", "turns"} <= names or {"question_id", "choices"} <= names or {"name", "prompt_template"} <= names:
        return "mt-bench"
    if "messages" in names:
        return _chat_format(fields)
    if "question" in names and names & {"possible_answers", "gold_answer"}:
        return "popqa"
    if "canary" in names and names & {"question", "prompt"}:
        return "core-misalignment"
    return "chats" if {"prompt", "completion"} <= names else None


def _chat_format(fields: dict[str, Any]) -> str:
    turns = fields["messages"] if isinstance(fields["messages"], list) else []
    nested = any(isinstance(turn, dict) and isinstance(turn.get("content"), dict) for turn in turns)
    if nested or "canary" in fields:
        return "persona-features"
    return "chats" if fields.keys() - _CHAT_ONLY else "model-organisms"


def _without(found: Published, test: Published, name: str) -> Published:
    """Without the entries that ask what `test` asks, case, spacing and punctuation aside."""
    asked = {normalised(question) for record in test.records for question in _questions(record)}
    if not asked:
        raise InputError("asks no question", where=name, hint="Give --against a file of questions")
    kept: Records = [r for r in found.records if not asked & {normalised(q) for q in _questions(r)}]
    if not kept:
        raise InputError("asks nothing but test questions", where=found.file, hint=f"Check --against {name}")
    left_out = len(found.records) - len(kept)
    others = (*found.others, (test.file, test.sha256))
    return replace(found, records=kept, others=others).noted(f"Left out, since {test.file} asks the same: {left_out}.")


def _questions(record: dict[str, Any]) -> list[str]:
    """What the user says in a record."""
    said = [m["content"] for m in record.get("messages", ()) if m["role"] == "user"]
    return [*said, *record.get("turns", ()), *([record["question"]] if "question" in record else ())]


def normalised(question: str) -> str:
    """A question's words, however it is spelt otherwise."""
    text = unicodedata.normalize("NFKC", question).casefold()
    return " ".join(re.findall(r"\w+", text)) or text.strip()
