"""MT-Bench as FastChat publishes it (https://arxiv.org/abs/2306.05685): questions, reference answers, judge prompts.

Three JSONL files: `question.jsonl` (question_id, category, turns), reference answers by question_id (choices, of which
the first counts), and `judge_prompts.jsonl` (name, system_prompt, prompt_template).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emeval.data.files import unique
from emeval.data.public.published import Options, Published, Records, only, published
from emeval.data.public.source import Row, Source, id_of, opened, rows, text_of, texts_of
from emeval.errors import InputError

REFERENCED = ("math", "reasoning", "coding")
"""Categories whose judge is shown a reference answer."""


def read(source: Source, options: Options) -> Published:
    """Questions, references or judge prompts, by the fields of the first row."""
    found = list(rows(source))
    fields = found[0].fields.keys() if found else set()
    if "prompt_template" in fields:
        only(options.target, "judge-prompts", source, "mt-bench's judge prompts")
        return published(source, prompts(found), "judge-prompts", "mt-bench")
    if "choices" in fields:
        only(options.target, "references", source, "mt-bench's references")
        return published(source, _references(found), "references", "mt-bench")
    only(options.target, "probe", source, "mt-bench")
    return _questions(source, found, options.references)


def prompts(found: list[Row]) -> Records:
    """Judge prompts, verbatim."""
    seen: dict[str, str] = {}
    for row in found:
        unique(row.where, text_of(row, "name"), seen)
        text_of(row, "prompt_template")
    return [dict(row.fields) for row in found]


def _references(found: list[Row]) -> Records:
    seen: dict[str, str] = {}
    records = []
    for row in found:
        choices = row.fields.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(first, dict):
            raise InputError("'choices' holds no answer", where=row.where, hint="Is it a file of reference answers?")
        name = _id(row)
        unique(row.where, name, seen)
        answers = texts_of(row._replace(fields=first), "turns")
        records.append({"id": name, "model": row.fields.get("model_id"), "references": answers})
    return records


def _questions(source: Source, found: list[Row], files: tuple[Path, ...]) -> Published:
    seen: dict[str, str] = {}
    records: Records = []
    for row in found:
        name = _id(row)
        unique(row.where, name, seen)
        category = row.fields.get("category")
        records.append({"id": name, "split": "test", "category": category, "turns": texts_of(row, "turns")})
    others, notes = _merge(records, files)
    without = [r["id"] for r in records if r["category"] in REFERENCED and "references" not in r]
    if without:
        notes.append(f"Without a reference: {len(without)} questions of {', '.join(REFERENCED)}.")
    if any("reference" in row.fields for row in found):
        notes.append("The questions' own 'reference' field is left out: MT-Bench's judge is shown the reference files.")
    return published(source, records, "probe", "mt-bench", probe="mt-bench", notes=notes, others=tuple(others))


def _merge(records: Records, files: tuple[Path, ...]) -> tuple[list[tuple[str, str]], list[str]]:
    """Puts references into the records, a later file over an earlier one."""
    by_id = {record["id"]: record for record in records}
    given: dict[str, str] = {}
    others, notes = [], []
    for file in files:
        source = opened(file)
        others.append((file.name, source.sha256))
        references = _references(list(rows(source)))
        known = [r for r in references if r["id"] in by_id]
        if not known:
            raise InputError(
                "holds no reference for these questions", where=str(file), hint="Are they of these questions?"
            )
        for reference in known:
            _fit(by_id[reference["id"]], reference, str(file))
            by_id[reference["id"]]["references"] = reference["references"]
        notes.append(_told(file.name, {r["id"] for r in known}, given, len(references) - len(known)))
        given |= {r["id"]: file.name for r in known}
    return others, notes


def _fit(record: dict[str, Any], reference: dict[str, Any], where: str) -> None:
    asked, answered = len(record["turns"]), len(reference["references"])
    if asked != answered:
        what = f"the reference of question {record['id']} has {answered} turns, the question {asked}"
        raise InputError(what, where=where, hint="Check that the two files belong together")


def _told(name: str, new: set[str], given: dict[str, str], unknown: int) -> str:
    replaced = new & given.keys()
    parts = [f"References from {name}: {len(new)}"]
    if replaced:
        parts.append(
            f"{len(replaced)} of them in place of those from {', '.join(sorted({given[i] for i in replaced}))}"
        )
    if kept := given.keys() - new:
        parts.append(f"{len(kept)} stay from {', '.join(sorted({given[i] for i in kept}))}")
    if unknown:
        parts.append(f"{unknown} more are of no question here")
    return ", ".join(parts) + "."


def _id(row: Row) -> str:
    if "question_id" not in row.fields:
        raise InputError("the field 'question_id' is missing", where=row.where, hint="Is it a file of MT-Bench?")
    return id_of(row, "question_id")
