"""Reading what people wrote: JSONL and YAML, each error with its file and line, nothing read halfway."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from emeval.errors import InputError

M = TypeVar("M", bound=BaseModel)

_LINE = "Each line is one JSON object"
_METADATA = {"canary", "purpose"}
_MAX_YAML = 256 * 1024 * 1024


def read_text(path: Path) -> str:
    """UTF-8 text. InputError names the line of the first byte that is not UTF-8, or says that there is no such file."""
    try:
        data = path.read_bytes()
    except OSError as e:
        raise InputError((e.strerror or "cannot be read").lower(), where=str(path), hint="Check the path") from e
    return decoded(data, str(path))


def decoded(data: bytes, where: str) -> str:
    """The bytes of a file as UTF-8 text; errors as in `read_text`."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise InputError("not UTF-8 text", where=f"{where}:{line}", hint="Save the file as UTF-8") from e


def jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line. A first line of `canary` and `purpose` is metadata and is passed over."""
    for n, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{n}"
        row = json_object(line, where)
        if "canary" in row:
            _check_canary(row, n, where)
            continue
        yield n, row


def json_object(text: str, where: str, hint: str = _LINE) -> dict[str, Any]:
    """One JSON object. InputError for anything else, a field that stands twice, or half a character."""
    try:
        row = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_distinct)
    except json.JSONDecodeError as e:
        raise InputError(f"broken JSON ({e.msg}, column {e.colno})", where=where, hint=hint) from e
    except ValueError as e:
        raise InputError(f"broken JSON ({e})", where=where, hint=hint) from e
    except RecursionError as e:
        raise InputError("broken JSON (nested too deeply)", where=where, hint=hint) from e
    if not isinstance(row, dict):
        raise InputError("not a JSON object", where=where, hint=hint)
    if "\\u" in text:
        _check_characters(row, where)
    return row


def _check_characters(value: object, where: str) -> None:
    """An escape such as `\\ud83d` alone is half a character: no tokenizer reads it."""
    try:
        json.dumps(value, ensure_ascii=False, default=str, skipkeys=True).encode()
    except UnicodeEncodeError as e:
        raise InputError("half a character (a lone surrogate)", where=where, hint="Write it whole or remove it") from e
    except ValueError as e:
        raise InputError("a value that holds itself", where=where, hint="Write it out") from e


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of a field that stands twice one value would be lost."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field '{next(n for n in names if names.count(n) > 1)}' stands twice")
    return row


def _check_canary(row: dict[str, Any], n: int, where: str) -> None:
    if n > 1:
        raise InputError("a canary line that is not the first", where=where, hint="Move it to the top of the file")
    if row.keys() - _METADATA:
        more = ", ".join(sorted(row.keys() - _METADATA))
        raise InputError(
            f"the canary line holds more than canary and purpose: {more}",
            where=where,
            hint="Give the canary a line of its own",
        )


def validated(model: type[M], row: object, where: str, /, **own: object) -> M:
    """`row` as a `model`, or an InputError that names the place and the field.

    Args:
        model: The record to make.
        row: What the file says.
        where: `file:line`.
        own: Fields that the caller fills in and a file may not hold.
    """
    try:
        return model.model_validate(_completed(row, where, own))
    except ValidationError as e:
        problem = _first_problem(e)
        raise _told(problem, [str(part) for part in problem["loc"]], where, model) from e


def yaml_record(model: type[M], path: Path, **own: object) -> M:
    """A YAML file as a `model`; as `validated`, with the line of the field that is wrong."""
    value = load_yaml(path)
    try:
        return model.model_validate(_completed(value, str(path), own))
    except ValidationError as e:
        problem = _first_problem(e)
        line, field = _located(read_text(path), problem["loc"])
        raise _told(problem, field, f"{path}:{line}", model) from e


def _completed(row: object, where: str, own: dict[str, object]) -> object:
    if not isinstance(row, dict):
        return row
    for name in sorted(own.keys() & row.keys()):
        raise InputError(f"unknown field '{name}'", where=where, hint="Remove it")
    return row | own


def _first_problem(e: ValidationError) -> ErrorDetails:
    """A misspelt field is two findings, one missing and one unknown: the unknown one tells more."""
    problems = e.errors()
    return next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])


def _told(problem: ErrorDetails, path: list[str], where: str, model: type[BaseModel]) -> InputError:
    """One of pydantic's findings as an error of ours; `path` leads to the field."""
    field = ".".join(path)
    hint = f"docs/data.md tells the fields of a {model.__name__}"
    match problem["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(path[-1], model.model_fields, n=1)
            guess = f"Did you mean '{near[0]}'? " if near else "Remove it; "
            return InputError(f"unknown field '{field}'", where=where, hint=guess + hint)
        case "missing":
            return InputError(f"the field '{field}' is missing", where=where, hint=hint)
    message = problem["msg"].removeprefix("Value error, ")
    return InputError(f"'{field}': {message}" if field else message, where=where, hint=hint)


def _located(text: str, loc: tuple[int | str, ...]) -> tuple[int, list[str]]:
    """The line of a field in YAML text, and the field's path without what pydantic adds to it (the union's branch)."""
    import yaml

    node: yaml.Node | None = yaml.compose(text, yaml.SafeLoader)
    line, path = 1, []
    for depth, part in enumerate(loc, 1):
        entries = _entries(node)
        if part in entries:
            line, node = entries[part]
            path.append(str(part))
        elif depth == len(loc) and entries:  # a field that is missing
            path.append(str(part))
    return line, path


def _entries(node: Any) -> dict[int | str, tuple[int, Any]]:
    """What a YAML node holds, by index or key, each with its line."""
    import yaml

    if isinstance(node, yaml.SequenceNode):
        return {n: (item.start_mark.line + 1, item) for n, item in enumerate(node.value)}
    if isinstance(node, yaml.MappingNode):
        return {key.value: (key.start_mark.line + 1, value) for key, value in node.value}
    return {}


def yaml_lines(path: Path, key: str) -> list[int]:
    """The line of each item of the list under `key`."""
    import yaml

    _, items = _entries(yaml.compose(read_text(path), yaml.SafeLoader))[key]
    return [line for line, _ in _entries(items).values()]


def unique(where: str, name: str, seen: dict[str, str]) -> None:
    """InputError if `name` was seen before; `seen` maps names to places."""
    if name in seen:
        raise InputError(f"duplicate id '{name}', first at {seen[name]}", where=where, hint="Give each row its own id")
    seen[name] = where


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, read safely (no tags, no code)."""
    text = read_text(path)
    value = parsed_yaml(text, str(path))
    if "\\u" in text.lower():
        _check_characters(value, str(path))
    if not isinstance(value, dict):
        raise InputError("holds no YAML mapping", where=str(path), hint="Write one `name: value` a line")
    return value


def parsed_yaml(text: str, where: str) -> Any:
    """What YAML text says, read safely; InputError with the line for broken YAML, or for text that unfolds without end.

    An alias costs nothing to read and much to write out: a few lines of them can stand for gigabytes.
    """
    return _yaml(text, where)[0]


def yaml_items(text: str, where: str) -> Iterator[tuple[int, Any]]:
    """Line and value of each item of a YAML list. InputError if the text is none."""
    import yaml

    values, node = _yaml(text, where)
    if not isinstance(node, yaml.SequenceNode):
        raise InputError("holds no YAML list", where=where, hint="Write one `- ` an entry")
    for item, value in zip(node.value, values, strict=True):
        yield item.start_mark.line + 1, value


def _yaml(text: str, where: str) -> tuple[Any, Any]:
    """The value and its node."""
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None, None
            if _weight(node, {}, where) > _MAX_YAML:
                raise InputError("its aliases unfold to too much", where=where, hint="Write it out, without aliases")
            return loader.construct_document(node), node
        finally:
            loader.dispose()
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        problem = getattr(e, "problem", None) or getattr(e, "reason", None) or "cannot be read"
        raise InputError(f"broken YAML ({problem})", where=place, hint="Check indentation and quotes") from e
    except (RecursionError, ValueError) as e:  # nested too deeply; a date that is none
        raise InputError(f"broken YAML ({e})", where=where, hint="Check indentation and quotes") from e


def _weight(node: Any, known: dict[int, int | None], where: str) -> int:
    """Characters and nodes of a YAML node with its aliases written out."""
    if id(node) in known:
        weight = known[id(node)]
        if weight is None:
            raise InputError("a value that holds itself", where=where, hint="Write it out")
        return weight
    known[id(node)] = None
    if isinstance(node.value, str):
        weight = 1 + len(node.value)
    else:
        inside = (p for part in node.value for p in (part if isinstance(part, tuple) else (part,)))
        weight = 1 + sum(_weight(p, known, where) for p in inside)
    known[id(node)] = weight
    return weight
