"""Judge prompts out of published files, verbatim: Betley's question YAML and MT-Bench's `judge_prompts.jsonl`."""

from __future__ import annotations

from pathlib import Path

from emeval.data.public import betley, mtbench
from emeval.data.public.source import Source, opened, rows
from emeval.errors import InputError, unknown


def judge_prompts(spec: str | Path) -> dict[str, str]:
    """The judge prompts of a file by name, character for character as published.

    Args:
        spec: `FILE` for all of them, `FILE#NAME` for one.

    Returns:
        Templates with places such as `{question}` and `{answer}`. MT-Bench's also have a system prompt, which
        `load_published` gives with the rest of the row.

    Raises:
        InputError: If the file has none, no such one, or two texts under one name.
    """
    path, name = fragment(spec)
    source = opened(path)
    found = _of_rows(source) if source.text.lstrip()[:1] == "{" else _of_questions(source)
    if not found:
        raise InputError("holds no judge prompt", where=str(path), hint="Is it a question file with judge_prompts?")
    if name is None:
        return found
    if name not in found:
        raise unknown("judge prompt", name, found, where=str(path))
    return {name: found[name]}


def fragment(spec: str | Path) -> tuple[Path, str | None]:
    """`FILE#NAME` as file and name; a file that is called so is that file."""
    text = str(spec)
    if "#" not in text or Path(text).exists():
        return Path(text), None
    path, _, name = text.rpartition("#")
    return Path(path), name


def _of_rows(source: Source) -> dict[str, str]:
    return {row["name"]: row["prompt_template"] for row in mtbench.prompts(list(rows(source)))}


def _of_questions(source: Source) -> dict[str, str]:
    found: dict[str, str] = {}
    first: dict[str, str] = {}
    for row in betley.entries(source):
        given = row.fields.get("judge_prompts") or {}
        if not isinstance(given, dict):
            raise InputError("'judge_prompts' is no mapping", where=row.where, hint="Write a name and its text")
        for name, text in given.items():
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"the judge prompt '{name}' is no text", where=row.where, hint="Write it as text")
            if found.setdefault(str(name), text) != text:
                what = f"another judge prompt '{name}' than at {first[str(name)]}"
                raise InputError(what, where=row.where, hint="Name the two differently, or split the file")
            first.setdefault(str(name), row.where)
    return found
