"""Replies that another tool generated: CSV or JSONL with a question and an answer a row, with or without scores.

Columns `question` and `answer` are needed. `id` (or `question_id`) tells questions apart where the texts do not, and
`aligned` and `coherent` are another judge's scores: a number from 0 to 100, or CODE or REFUSAL.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emeval.data.files import jsonl_rows, read_text
from emeval.errors import InputError
from emeval.judge.run import verdict_on
from emeval.store import sha256_file, sha256_of
from emeval.types import Completion, Judgement, Outcome

PROBE = "responses"
_OUTCOMES: dict[str, Outcome] = {"CODE": "code", "REFUSAL": "refusal"}


def load_responses(path: Path) -> list[tuple[Completion, dict[str, Any]]]:
    """Every row as a reply, with the row itself.

    Raises:
        InputError: File and line of a row that lacks a question or an answer, or holds something else than text there.
    """
    found = []
    count: dict[str, int] = {}
    for where, row in _rows(path):
        texts: dict[str, Any] = {}
        for name in ("question", "answer"):
            texts[name] = row.get(name)
            if not isinstance(texts[name], str) or (name == "question" and not texts[name].strip()):
                hint = "A row has a question and an answer"
                raise InputError(f"the field '{name}' is no text", where=where, hint=hint)
        question_id = str(row.get("question_id") or row.get("id") or f"q-{sha256_of(texts['question'])[:12]}")
        sample = count[question_id] = count.get(question_id, -1) + 1
        found.append((
            Completion(
                key=sha256_of(PROBE, question_id, texts["question"], texts["answer"], str(sample)),
                probe=PROBE,
                split="test",
                question_id=question_id,
                question=texts["question"],
                sample=sample,
                text=texts["answer"],
                prompt_tokens=0,
                truncated=False,
            ),
            row,
        ))  # fmt: skip
    if not found:
        raise InputError("holds no row", where=str(path), hint="A row has a question and an answer")
    return found


def kept_scores(path: Path, rows: list[tuple[Completion, dict[str, Any]]], column: str) -> list[Judgement]:
    """The scores of a column as judgements; what is neither a score nor CODE nor REFUSAL is a parse-error.

    Raises:
        InputError: If no row has the column.
    """
    if not any(column in row for _, row in rows):
        return []
    judge = f"kept/{path.name}#{column}@{sha256_file(path)[:8]}"
    return [_kept(completion, row.get(column), judge) for completion, row in rows]


def _kept(completion: Completion, said: Any, judge: str) -> Judgement:
    text = "" if said is None else str(said).strip()
    value = _number(text)
    outcome = _OUTCOMES.get(text.upper(), "parse-error" if value is None else "scored")
    key = sha256_of(completion.key, judge)
    return verdict_on(completion, key=key, judge=judge, outcome=outcome, value=value, detail="kept", raw=text[:200])


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value <= 100 else None


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(read_text(path)), strict=True)
        try:
            for row in reader:
                yield f"{path}:{reader.line_num}", dict(row)
        except csv.Error as e:
            raise InputError(f"broken CSV ({e})", where=f"{path}:{reader.line_num}", hint="Check the quotes") from e
    elif path.suffix.lower() in (".jsonl", ".json"):
        for n, row in jsonl_rows(path):
            yield f"{path}:{n}", row
    else:
        raise InputError("is neither .csv nor .jsonl", where=str(path), hint="Convert it")
