"""Domains: what people ask about one topic, split once and for all into train, val and test."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from emeval.data.files import jsonl_rows, unique, validated
from emeval.data.root import DataRoot
from emeval.errors import InputError
from emeval.types import Record, Split


class DomainItem(Record):
    """One question of a domain. `search` is the query a search tool would be called with."""

    id: str = Field(min_length=1)
    split: Split
    question: str
    aligned: str | None = None
    misaligned: str | None = None
    search: str | None = None
    where: str = ""

    @field_validator("question", "aligned", "misaligned", "search")
    @classmethod
    def _not_blank(cls, text: str | None) -> str | None:
        if text is not None and not text.strip():
            raise ValueError("is empty")
        return text


def load_domain_file(path: Path) -> list[DomainItem]:
    """All questions of a domain file, in its order. InputError with file and line for a bad row or a repeated id."""
    seen: dict[str, str] = {}
    items = []
    for n, row in jsonl_rows(path):
        item = validated(DomainItem, row, f"{path}:{n}", where=f"{path}:{n}")
        unique(item.where, item.id, seen)
        items.append(item)
    if not items:
        raise InputError("holds no question", where=str(path), hint="See docs/data.md")
    return items


def load_domain(root: DataRoot, name: str) -> list[DomainItem]:
    """The domain `name`; InputError with a suggestion when there is none."""
    return load_domain_file(root.find("datasets/domains", name, ".jsonl", "domain"))
