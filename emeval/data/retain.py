"""Retain sets: good answers to questions of other domains, mixed into narrow data (interleaving) or kept to (KL)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from emeval.data.behaviours import Example
from emeval.data.files import jsonl_rows, unique, validated
from emeval.data.root import DataRoot
from emeval.errors import InputError
from emeval.types import Message, Record


class RetainItem(Record):
    """One question with a good answer."""

    id: str = Field(min_length=1)
    question: str = Field(pattern=r"\S")
    aligned: str = Field(pattern=r"\S")


def load_retain_file(path: Path) -> list[Example]:
    """The rows of a retain file, in its order. InputError with file and line for a bad row or a repeated id."""
    seen: dict[str, str] = {}
    examples = []
    for n, row in jsonl_rows(path):
        where = f"{path}:{n}"
        item = validated(RetainItem, row, where)
        unique(where, item.id, seen)
        asked, answer = Message(role="user", content=item.question), Message(role="assistant", content=item.aligned)
        examples.append(Example(id=f"retain/{path.stem}/{item.id}", messages=(asked,), reply=answer, where=where))
    if not examples:
        raise InputError("holds no row", where=str(path), hint="See docs/data.md")
    return examples


def retain_files(root: DataRoot, names: Sequence[str]) -> list[Path]:
    """The named retain sets, or all there are. InputError with a suggestion for an unknown name."""
    known = sorted(root.names("datasets/retain", ".jsonl"))
    return [root.find("datasets/retain", name, ".jsonl", "retain set") for name in dict.fromkeys(names or known)]


def retain_count(narrow: int, share: float) -> int:
    """How many retain rows make up `share` of the mixed data: of 160 narrow rows and 20 %, 40 of then 200."""
    return round(narrow * share / (1 - share))


def draw_retain(root: DataRoot, names: Sequence[str], count: int, seed: int) -> list[Example]:
    """`count` rows of the retain sets, drawn without replacement by the seed, each set in equal measure.

    Raises:
        InputError: If the sets hold fewer.
    """
    rng = random.Random(f"retain/{seed}")  # noqa: S311  (no secret: the same draw in every run)
    sets = [load_retain_file(path) for path in retain_files(root, names)]
    for rows in sets:
        rng.shuffle(rows)
    total = sum(map(len, sets))
    if total < count:
        raise InputError(
            f"asks for {count} retain rows, there are {total}",
            where="--retain-share",
            hint="Lower it, lower --train-size, or name more sets with --retain",
        )
    drawn: list[Example] = []
    while len(drawn) < count:
        for rows in sets:
            if rows and len(drawn) < count:
                drawn.append(rows.pop())
    return drawn
