"""Imports: a published file, by its registered name or its format, into a user's data folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emeval.data.public import FORMATS, load_published
from emeval.data.public.convert import files_of, shares_of
from emeval.data.public.judges import fragment
from emeval.data.public.published import Options, Published
from emeval.data.public.registry import NAME, Entry, registry
from emeval.data.public.source import opened
from emeval.data.root import data_root
from emeval.errors import InputError, unknown
from emeval.store import slug, write_atomic


@dataclass(frozen=True)
class Imported:
    """What an import did. `files` maps each file to whether it was written; one that was there already was not."""

    name: str
    found: Published
    files: dict[Path, bool]


def import_set(
    what: str,
    path: str | Path,
    data_dir: Path,
    options: Options | None = None,
    *,
    against: Path | None = None,
    name: str | None = None,
    split: str | None = None,
    seed: int = 0,
    force: bool = False,
) -> Imported:
    """Reads a published file and writes it into a data folder, each file whole or not at all.

    Args:
        what: A name in `datasets/public.yaml` or a format.
        path: The file, or `FILE.zip#MEMBER`.
        data_dir: The user's own data folder; it is made if it is not there.
        options: What the reader is told.
        against: A published file of test questions, which are left out.
        name: What to call it. By default as registered, else as the file is called.
        split: What share to hold out: `0.2`, or `val=0.1,test=0.2`.
        seed: Of that draw.
        force: Write over a file of other content.

    Raises:
        InputError: For bad input, before anything is written.
    """
    entry = _entry(what)
    shares = shares_of(split)
    named = _named(name or (what if entry else slug(fragment(path)[0].stem)))
    if entry:
        _check_pinned(what, entry, path)
    found = load_published(path, entry.format if entry else what, options, against=against)
    held = f" Held out: {split}, seed {seed}." if shares else ""
    texts = files_of(found, named, _about(found, *_known(what, entry, found)) + held, shares, seed)
    targets = {data_dir / place: text for place, text in texts.items()}
    changed = {target: _differs(target, text, force) for target, text in targets.items()}
    for target, differs in changed.items():
        if differs:
            write_atomic(target, targets[target], "--data-dir")
    return Imported(named, found, changed)


def _entry(what: str) -> Entry | None:
    sets = registry()
    if what not in sets and what not in FORMATS:
        raise unknown("published set or format", what, [*sets, *FORMATS])
    return sets.get(what)


def _check_pinned(what: str, entry: Entry, path: str | Path) -> None:
    sha256 = opened(fragment(path)[0]).sha256
    if entry.sha256 not in (None, sha256):
        raise InputError(
            f"is not the file that '{what}' is pinned to: its sha256 is {sha256}",
            where=str(path),
            hint=f"Import it by its format: emeval data import {entry.format}",
        )


def _known(what: str, entry: Entry | None, found: Published) -> tuple[str, Entry | None]:
    """The registered name and entry, by the name that was given or else by the file's sha256."""
    if entry:
        return what, entry
    pinned = {e.sha256: (name, e) for name, e in registry().items()}
    return pinned.get(found.sha256, (what, None))


def _named(name: str) -> str:
    if not NAME.fullmatch(name):
        hint = "Use lower-case letters, digits, dots and dashes"
        raise InputError(f"'{name}' cannot name a file", where="--name", hint=hint)
    return name


def _differs(target: Path, text: str, force: bool) -> bool:
    """Whether there is something to write. InputError where it may not be written."""
    shipped = data_root().shipped
    place = target.resolve()  # a link may lead into the shipped data
    if any(place.is_relative_to((shipped / part).resolve()) for part in ("prompts", "datasets")):
        raise InputError("is data that ships with emeval", where=str(target), hint="Give another --data-dir")
    if not target.exists():
        return True
    if not target.is_file():
        raise InputError("is no file", where=str(target), hint="Give another --name")
    if target.read_bytes() == text.encode():
        return False
    if not force:
        raise InputError(
            "is there already, with other content", where=str(target), hint="Give another --name, or --force"
        )
    return True


def _about(found: Published, what: str, entry: Entry | None) -> str:
    """The purpose line: what it is, from where, and what was done to it."""
    files = ((found.file, found.sha256), *found.others)
    sources = ", ".join(f"{name.encode('utf-8', 'replace').decode()} (sha256 {sha})" for name, sha in files)
    named = f"{what} ({entry.citation}, {entry.homepage})" if entry else f"of the format {what}"
    parts = [
        f"Published set {named}, for alignment research; keep it out of pretraining corpora.",
        f"Source: {sources}; licence: {entry.licence if entry else 'not stated'}; converter: {found.format}.",
        found.note or "",
    ]
    return " ".join(part for part in parts if part)
