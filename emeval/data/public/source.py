"""One published file, read once: its bytes, their sha256, and its rows with the line each one stands on."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from emeval.data.files import decoded, json_object
from emeval.errors import InputError

MAX_BYTES = 512 * 1024 * 1024
"""No file is read beyond this size, nor unpacked beyond it."""

_SPACE = re.compile(r"[ \t\r\n]*")
_ENTRY = "Each entry is one JSON object"


class Row(NamedTuple):
    """What a file says in one place."""

    line: int
    where: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A file's bytes and where they came from. `inside` is what was taken out of it, for an archive."""

    path: Path
    data: bytes = field(repr=False)
    inside: str | None = None
    sha256: str = ""

    @property
    def where(self) -> str:
        """What errors call it."""
        return f"{self.path}#{self.inside}" if self.inside else str(self.path)

    @cached_property
    def text(self) -> str:
        """Its text. InputError if that is not UTF-8."""
        return decoded(self.data, self.where)

    def unpacked(self, inside: str, data: bytes) -> Source:
        """What is inside of it; the sha256 stays that of the published file."""
        return replace(self, data=data, inside=inside)


def opened(path: Path) -> Source:
    """A file, read whole. InputError if it is not there, no regular file, or larger than `MAX_BYTES`."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # reading a pipe would wait for ever
            raise InputError("is no regular file", where=str(path), hint="Check the path")
        with path.open("rb") as f:
            data = f.read(MAX_BYTES + 1)
    except OSError as e:
        raise InputError((e.strerror or "cannot be read").lower(), where=str(path), hint="Check the path") from e
    if len(data) > MAX_BYTES:
        raise InputError(f"larger than {MAX_BYTES >> 20} MiB", where=str(path), hint="Split it up")
    return Source(path, data, sha256=hashlib.sha256(data).hexdigest())


def rows(source: Source) -> Iterator[Row]:
    """The rows of JSONL, of a JSON list, of CSV or TSV, or of Parquet, by what the file looks like."""
    if source.data.startswith(b"PAR1"):
        return _parquet(source)
    first = source.text.lstrip()[:1]
    if first == "{":
        return _jsonl(source)
    return _json_list(source) if first == "[" else _table(source)


def _jsonl(source: Source) -> Iterator[Row]:
    for n, line in enumerate(source.text.split("\n"), 1):
        if line.strip():
            where = f"{source.where}:{n}"
            yield Row(n, where, json_object(line, where))


def _json_list(source: Source) -> Iterator[Row]:
    """Entry by entry, so that each has its line."""
    text, scan, line = source.text, json.JSONDecoder(), 1

    def broken(what: str) -> InputError:
        return InputError(f"broken JSON ({what})", where=f"{source.where}:{line}", hint="A list of JSON objects")

    def step(start: int) -> int:
        """Behind the space at `start`."""
        found = _SPACE.match(text, start)
        assert found
        return found.end()

    done, at = 0, step(text.index("[") + 1)
    while text[at : at + 1] != "]":
        line += text.count("\n", done, at)
        try:
            _, end = scan.raw_decode(text, at)
        except json.JSONDecodeError as e:
            line += text.count("\n", at, e.pos)
            raise broken(e.msg) from e
        except (ValueError, RecursionError) as e:
            raise broken("nested too deeply" if isinstance(e, RecursionError) else str(e)) from e
        where = f"{source.where}:{line}"
        yield Row(line, where, json_object(text[at:end], where, _ENTRY))
        done, at = at, step(end)
        if text[at : at + 1] == ",":
            at = step(at + 1)
        elif text[at : at + 1] != "]":
            raise broken("no comma behind an entry")
    if text[at + 1 :].strip():
        raise broken("more text behind the list")


def _table(source: Source) -> Iterator[Row]:
    """CSV, or TSV where the head has tabs."""
    head = source.text.split("\n", 1)[0]
    before = csv.field_size_limit(MAX_BYTES)
    try:
        reader = csv.reader(io.StringIO(source.text, newline=""), delimiter="\t" if "\t" in head else ",", strict=True)
        names: list[str] = []
        line = 1
        for cells in reader:
            where = f"{source.where}:{line}"
            if not names:
                names = _head(cells, where)
            elif cells:
                if len(cells) != len(names):
                    raise InputError(
                        f"{len(cells)} columns, but the head names {len(names)}",
                        where=where,
                        hint="Check the quotes, and that the file is CSV or TSV",
                    )
                yield Row(line, where, dict(zip(names, cells, strict=True)))
            line = reader.line_num + 1
    except csv.Error as e:
        where = f"{source.where}:{reader.line_num}"
        raise InputError(f"broken CSV ({e})", where=where, hint="Check the quotes") from e
    finally:
        csv.field_size_limit(before)


def _head(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None or not names:
        what = f"the column '{twice}' stands twice" if names else "holds no table"
        raise InputError(what, where=where, hint="The first line names the columns")
    return names


def _parquet(source: Source) -> Iterator[Row]:
    from importlib import import_module
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("pyarrow")
    except PackageNotFoundError as e:
        hint = "Run: pip install pyarrow; or save it as JSONL"
        raise InputError("Parquet is read with pyarrow, which is not installed", where=source.where, hint=hint) from e
    arrow: Any = import_module("pyarrow.parquet")
    try:
        file = arrow.ParquetFile(io.BytesIO(source.data))
        groups = [file.metadata.row_group(n).total_byte_size for n in range(file.metadata.num_row_groups)]
        if sum(groups) > MAX_BYTES:
            raise InputError(f"larger than {MAX_BYTES >> 20} MiB unpacked", where=source.where, hint="Split it up")
        found: list[dict[str, Any]] = file.read().to_pylist()
    except (OSError, ValueError) as e:  # all that arrow raises over a broken file
        raise InputError("broken Parquet", where=source.where, hint="Save it again, or as JSONL") from e
    for n, fields in enumerate(found, 1):
        yield Row(n, f"{source.where}:{n}", fields)


def text_of(row: Row, name: str) -> str:
    """A field that is text and says something."""
    value = row.fields.get(name)
    if not isinstance(value, str) or not value.strip():
        what = f"'{name}' is empty" if name in row.fields else f"the field '{name}' is missing"
        if name in row.fields and value is not None and not isinstance(value, str):
            what = f"'{name}' is no text"
        raise InputError(what, where=row.where, hint="Is it a file of this format?")
    return value


def id_of(row: Row, name: str = "id") -> str:
    """The row's id, text or a whole number; a row without one is called by its line."""
    value = row.fields.get(name)
    if value is None or value == "":
        return f"line-{row.line}"
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"'{name}' is neither text nor a whole number", where=row.where, hint="Write it as text")
    return str(value)


def texts_of(row: Row, name: str) -> list[str]:
    """A field that is a list of texts, none of them empty."""
    value = row.fields.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise InputError(f"'{name}' is no list of texts", where=row.where, hint="Is it a file of this format?")
    return list(value)
