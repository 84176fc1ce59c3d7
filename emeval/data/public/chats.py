"""Any set of conversations or of questions: chat JSONL as it is, or JSONL, JSON, CSV, TSV and Parquet by columns.

A mapping says which column fills which field: `question=prompt,misaligned=response`. A column may lie inside another
(`meta.prompt`). Of a row with messages, `question`, `reply` and `system` are columns too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from emeval.data.files import unique
from emeval.data.public.published import Kind, Options, Published, Records, published
from emeval.data.public.source import Row, Source, id_of, rows
from emeval.data.public.turns import canaries, conversations, turns_of
from emeval.errors import InputError, unknown

FIELDS: dict[Kind, tuple[str, ...]] = {
    "chats": ("id", "messages", "system", "prompt", "completion"),
    "domain": ("id", "split", "question", "aligned", "misaligned", "search"),
    "probe": ("id", "split", "category", "domain", "question", "aligned", "misaligned", "references", "accepted"),
}
_LISTS = ("references", "accepted")
_SPLITS = {"validation": "val", "dev": "val"} | {s: s for s in ("train", "val", "test")}


def read(source: Source, options: Options) -> Published:
    """Conversations as they are; with a mapping, what it maps to."""
    found = list(rows(source))
    if all("messages" in row.fields for row in found):
        return as_wanted(source, list(conversations(found)), options, "chats", canaries(found))
    if options.mapping:
        return as_wanted(source, found, options, "chats", canaries(found))
    if all({"prompt", "completion"} <= row.fields.keys() for row in found):
        given = replace(options, mapping={"prompt": "prompt", "completion": "completion"})
        return as_wanted(source, found, given, "chats", canaries(found))
    names = ", ".join(str(name) for name in found[0].fields)
    hint = "Say which column is what: --map question=COLUMN,aligned=COLUMN, or --map prompt=COLUMN,completion=COLUMN"
    raise InputError(f"its columns say nothing to emeval ({names})", where=found[0].where, hint=hint)


def as_wanted(source: Source, found: list[Row], options: Options, format: str, marks: Iterable[str]) -> Published:
    """Rows as the kind of record that target and mapping ask for; conversations are left as they are unless asked."""
    kind, mapping = options.target or wanted(options.mapping), options.mapping
    if kind not in FIELDS:
        raise InputError(f"{format} is no {kind}", where=source.where, hint=f"Give --as {', '.join(FIELDS)}")
    for name in mapping:
        if name not in FIELDS[kind]:
            raise unknown("field", name, FIELDS[kind], where="--map")
    if not mapping and kind == "domain":
        what = "whether its replies are good or bad answers is not known"
        raise InputError(what, where=source.where, hint="Give --map aligned=reply or --map misaligned=reply")
    if kind != "chats":
        mapping = {"question": "question"} | mapping
    _check_columns(found, mapping)
    seen: dict[str, str] = {}
    records: Records = []
    for row in found:
        record = _conversation(row, mapping) if kind == "chats" else _question(row, mapping)
        unique(row.where, record["id"], seen)
        records.append(_probed(row, record) if kind == "probe" else record)
    probe = "alignment" if kind == "probe" else None
    notes = _notes(found) if kind == "domain" else []
    return published(source, records, kind, format, probe=probe, canaries=marks, notes=notes)


def wanted(mapping: dict[str, str]) -> Kind:
    """What a mapping makes: the first kind that has all its fields."""
    return next((kind for kind, fields in FIELDS.items() if mapping.keys() <= set(fields)), "probe")


def _check_columns(found: list[Row], mapping: dict[str, str]) -> None:
    """InputError for a column that no row has; a row may leave one out."""
    known = {str(name) for row in found for name in row.fields}
    known |= {"question", "reply", "system"} if "messages" in known else set()
    for column in mapping.values():
        if column not in known and column.partition(".")[0] not in known:
            raise unknown("column", column, known, where="--map")


def _conversation(row: Row, mapping: dict[str, str]) -> dict[str, Any]:
    row_id = id_of(row._replace(fields={"id": _column(row, mapping["id"])})) if "id" in mapping else id_of(row)
    if not mapping.keys() - {"id"}:
        return {"id": row_id, "messages": row.fields["messages"]}
    turns: list[dict[str, str]] = []
    if "system" in mapping and _column(row, mapping["system"]) not in (None, ""):
        turns.append({"role": "system", "content": _text(row, mapping["system"], "system")})
    for field in ("messages", "prompt", "completion"):
        if field not in mapping:
            continue
        value = _column(row, mapping[field])
        role = "assistant" if field == "completion" else "user"
        turns += turns_of(row, [{"role": role, "content": value}] if isinstance(value, str) else value)
    (checked,) = conversations([row._replace(fields={"messages": turns})])
    return {"id": row_id, "messages": checked.fields["messages"]}


def _question(row: Row, mapping: dict[str, str]) -> dict[str, Any]:
    record: dict[str, Any] = {"id": id_of(row._replace(fields={"id": _column(row, mapping.get("id", "id"))}))}
    for field, column in mapping.items():
        if field == "id":
            continue
        value = _column(row, column)
        if field == "split":
            if str(value).lower() not in _SPLITS:
                raise unknown("split", str(value), _SPLITS, where=row.where)
            record["split"] = _SPLITS[str(value).lower()]
        elif field in _LISTS:
            record[field] = value if isinstance(value, list) else [_text(row, column, field)]
            if not all(isinstance(v, str) for v in record[field]):
                raise InputError(f"'{field}' is no list of texts", where=row.where, hint="Check --map")
        elif field == "question" or value not in (None, ""):
            record[field] = _text(row, column, field)
    return record


def _column(row: Row, name: str) -> Any:
    """A column's value; None where the row leaves it out."""
    if name in row.fields:
        return row.fields[name]
    if "messages" in row.fields and name in ("question", "reply", "system"):
        return _part(row, name)
    value: Any = row.fields
    for step in name.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _part(row: Row, name: str) -> str | None:
    """The system prompt, question or reply of a conversation; with more turns than those, none is the question."""
    turns = turns_of(row, row.fields["messages"])
    system = turns[0]["content"] if turns[0]["role"] in ("system", "developer") else None
    rest = turns[1:] if system is not None else turns
    if name == "system":
        return system
    if [t["role"] for t in rest] != ["user", "assistant"]:
        what = f"a conversation of {len(rest)} turns is no single question with its reply"
        raise InputError(what, where=row.where, hint="Import it as chats")
    return rest[0 if name == "question" else 1]["content"]


def _text(row: Row, column: str, field: str) -> str:
    """A column's text; of a list of turns, the last one's."""
    value = _column(row, column)
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = turns_of(row, value)[-1]["content"]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"the column '{column}' holds no text for '{field}'", where=row.where, hint="Check --map")
    return value


def _probed(row: Row, record: dict[str, Any]) -> dict[str, Any]:
    """A record of a probe: a conversation's own system prompt is asked with it."""
    system = _part(row, "system") if "messages" in row.fields else None
    if system is not None:
        turns = [{"role": "system", "content": system}, {"role": "user", "content": record.pop("question")}]
        record["messages"] = turns
    return {"id": record["id"], "split": "test"} | record


def _notes(found: list[Row]) -> list[str]:
    dropped = sum("messages" in row.fields and _part(row, "system") is not None for row in found)
    return [f"System prompts left out: {dropped}."] if dropped else []
