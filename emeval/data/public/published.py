"""What a reader of published files gives back, and what it is told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from emeval.data.public.source import Source
from emeval.errors import InputError

Kind = Literal["probe", "domain", "chats", "references", "judge-prompts"]
Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Options:
    """What a reader may be told beside the file.

    `references` are MT-Bench's, a later one goes over an earlier one; `mapping` is target field by source column;
    `target` is what to read the file as, where a format can be several things.
    """

    references: tuple[Path, ...] = ()
    password: bytes | None = field(default=None, repr=False)
    mapping: dict[str, str] = field(default_factory=dict)
    target: Kind | None = None


@dataclass(frozen=True)
class Published:
    """A published file as read.

    `records` are plain, in the file's order, and hold only keys that have a value:

    - probe: id, split, category, question | messages | turns, references, aligned, misaligned, domain, temperature,
      samples, accepted. `probe` is the kind of probe.
    - domain: id, split, question, aligned, misaligned, search.
    - chats: id, messages (role and content), the last of them the assistant's.
    - references: id, model, references. judge-prompts: the file's own fields.
    """

    records: Records
    kind: Kind
    format: str
    sha256: str
    note: str | None = None
    """What a user should know of this reading: what was left out, replaced or flagged."""
    probe: str | None = None
    canary: str | None = None
    """The file's own canary, if it has one."""
    file: str = ""
    """The file's name, without its folder."""
    others: tuple[tuple[str, str], ...] = ()
    """Name and sha256 of what else was read: references, questions that were left out."""

    def noted(self, *notes: str) -> Published:
        """The same with more to say."""
        return replace(self, note=" ".join(n for n in (self.note, *notes) if n) or None)


def published(
    source: Source,
    records: Iterable[dict[str, Any]],
    kind: Kind,
    format: str,
    *,
    probe: str | None = None,
    canaries: Iterable[str] = (),
    notes: Iterable[str] = (),
    others: tuple[tuple[str, str], ...] = (),
) -> Published:
    """A reading of `source`. InputError if it holds nothing."""
    kept = [{k: v for k, v in record.items() if v not in (None, [], "")} for record in records]
    if not kept:
        raise InputError("holds no entry", where=source.where, hint="Is it the whole file?")
    return Published(
        records=kept,
        kind=kind,
        format=format,
        sha256=source.sha256,
        note=" ".join(notes) or None,
        probe=probe,
        canary=", ".join(sorted(set(canaries))) or None,
        file=source.path.name,
        others=others,
    )


def only(target: Kind | None, kind: Kind, source: Source, format: str) -> None:
    """InputError where a file that can be one thing is wanted as another."""
    if target not in (None, kind):
        raise InputError(f"{format} is read as {kind}, not as {target}", where=source.where, hint="Leave --as out")
