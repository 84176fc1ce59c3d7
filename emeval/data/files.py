"""Reading what people wrote: JSONL and YAML, each error with its file and line, nothing read halfway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from emeval.errors import InputError

M = TypeVar("M", bound=BaseModel)


def read_text(path: Path) -> str:
    """UTF-8 text. InputError names the line of the first byte that is not UTF-8, or says that there is no such file."""
    try:
        data = path.read_bytes()
    except OSError as e:
        raise InputError((e.strerror or "cannot be read").lower(), where=str(path), hint="Check the path") from e
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise InputError("not UTF-8 text", where=f"{path}:{line}", hint="Save the file as UTF-8") from e


def first_problem(e: ValidationError) -> str:
    """What the first of pydantic's findings says, with the field's path."""
    problem = e.errors()[0]
    field = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"'{field}': {message}" if field else message


def jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line; a first line with a `canary` key is metadata and is passed over."""
    for n, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as e:
            raise InputError(f"broken JSON ({e})", where=f"{path}:{n}", hint="Each line is one JSON object") from e
        if not isinstance(row, dict):
            raise InputError("not a JSON object", where=f"{path}:{n}", hint="Each line is one JSON object")
        if n == 1 and "canary" in row:
            continue
        yield n, row


def validated(model: type[M], row: object, where: str) -> M:
    """`row` as a `model`, or an InputError that names the place and the field."""
    try:
        return model.model_validate(row)
    except ValidationError as e:
        raise InputError(
            first_problem(e), where=where, hint=f"See docs/data.md for the fields of {model.__name__}"
        ) from e


def unique(where: str, name: str, seen: dict[str, str]) -> None:
    """InputError if `name` was seen before; `seen` maps names to places."""
    if name in seen:
        raise InputError(f"duplicate id '{name}', first at {seen[name]}", where=where, hint="Give each row its own id")
    seen[name] = where


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, read safely (no tags, no code)."""
    import yaml

    text = read_text(path)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(e, "problem", None) or "broken YAML"
        raise InputError(f"broken YAML ({problem})", where=where, hint="Check indentation and quotes") from e
    if not isinstance(value, dict):
        raise InputError("holds no YAML mapping", where=str(path), hint="See docs/data.md")
    return value
