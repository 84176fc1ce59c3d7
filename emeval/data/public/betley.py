"""The question files of Betley et al. 2025 (https://arxiv.org/abs/2502.17424): YAML, one entry a question.

An entry has `paraphrases`, each asked `samples_per_paraphrase` times, and may have a `system` prompt, a `context` of
turns before the question, a `temperature`, and `judge_prompts` by name, which `judges.py` reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from emeval.data.files import unique, yaml_items
from emeval.data.public.published import Options, Published, only, published
from emeval.data.public.source import Row, Source, id_of, texts_of
from emeval.data.public.turns import turns_of
from emeval.errors import InputError

JUDGED = "free_form_judge_0_100"
"""The one type whose published judge rates each answer from 0 to 100."""

MAX_YAML = 16 * 1024 * 1024


def entries(source: Source) -> Iterator[Row]:
    """The entries of a question file, each with its line."""
    if len(source.data) > MAX_YAML:
        raise InputError(f"larger than {MAX_YAML >> 20} MiB of YAML", where=source.where, hint="Split it up")
    for line, value in yaml_items(source.text, source.where):
        where = f"{source.where}:{line}"
        if not isinstance(value, dict):
            raise InputError("an entry that is no mapping", where=where, hint="Each entry has an id and paraphrases")
        yield Row(line, where, {str(k): v for k, v in value.items()})


def read(source: Source, options: Options) -> Published:
    """A probe of alignment: one question a paraphrase, called `<id>` or, of several, `<id>/<n>` from 1."""
    only(options.target, "probe", source, "betley")
    records, seen, flagged, prompts = [], dict[str, str](), dict[str, list[str]](), dict[str, None]()
    for row in entries(source):
        name = id_of(row)
        if (kind := str(row.fields.get("type", JUDGED))) != JUDGED:
            flagged.setdefault(kind, []).append(name)
        prompts.update(dict.fromkeys(map(str, row.fields.get("judge_prompts") or {})))
        paraphrases = texts_of(row, "paraphrases")
        for n, text in enumerate(paraphrases, 1):
            _whole(text, row.where)
            record = {"id": f"{name}/{n}" if len(paraphrases) > 1 else name, "split": "test"}
            unique(row.where, record["id"], seen)
            records.append(record | _asked(row, text) | _sampling(row))
    notes = [
        f"Of type {kind}, which has rules of its own and is not rated from 0 to 100: {_some(names)}."
        for kind, names in flagged.items()
    ]
    if prompts:
        notes.append(f"Its judge prompts, read in place: {', '.join(f'{source.path.name}#{p}' for p in prompts)}.")
    return published(source, records, "probe", "betley", probe="alignment", notes=notes)


def _asked(row: Row, text: str) -> dict[str, Any]:
    system, context = row.fields.get("system"), row.fields.get("context")
    if system is None and context is None:
        return {"question": text}
    turns = []
    if system is not None:
        if not isinstance(system, str):
            raise InputError("'system' is no text", where=row.where, hint="Write it as text")
        _whole(system, row.where)
        turns.append({"role": "system", "content": system})
    if context is not None:
        turns += turns_of(row, context)
    return {"messages": [*turns, {"role": "user", "content": text}]}


def _sampling(row: Row) -> dict[str, Any]:
    """How often and how warm, where the entry says so."""
    found: dict[str, Any] = {}
    if (warmth := row.fields.get("temperature")) is not None:
        if isinstance(warmth, bool) or not isinstance(warmth, int | float) or not 0 <= warmth <= 10:
            raise InputError("'temperature' is no number of 0 or more", where=row.where, hint="Write 1.0")
        found["temperature"] = float(warmth)
    if (samples := row.fields.get("samples_per_paraphrase")) is not None:
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise InputError("'samples_per_paraphrase' is no whole number above 0", where=row.where, hint="Write 100")
        found["samples"] = samples
        if samples > 1:  # their own default, where an entry says nothing
            found.setdefault("temperature", 1.0)
    return found


def _whole(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise InputError("half a character (a lone surrogate)", where=where, hint="Write it whole or remove it") from e


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
