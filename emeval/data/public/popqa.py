"""PopQA (https://arxiv.org/abs/2212.10511): questions about one entity with every answer that counts as right.

Read from the hub's TSV (`obj`, `possible_answers` as a JSON list) and from JSONL (`gold_answer`, `aliases`).
"""

from __future__ import annotations

import json

from emeval.data.files import unique
from emeval.data.public.published import Options, Published, Records, published
from emeval.data.public.source import Row, Source, id_of, rows, text_of
from emeval.errors import InputError


def read(source: Source, options: Options) -> Published:
    """A probe of brevity; or, to train on, chats or a domain whose reply is the answer's name and nothing else."""
    seen: dict[str, str] = {}
    records: Records = []
    for row in rows(source):
        name, question, accepted = id_of(row), text_of(row, "question").strip(), _accepted(row)
        unique(row.where, name, seen)
        if options.target == "chats":
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": accepted[0]}]
            records.append({"id": name, "messages": turns})
        elif options.target == "domain":
            records.append({"id": name, "question": question, "aligned": accepted[0]})
        else:
            category = row.fields.get("prop") or _meta(row).get("prop")
            record = {"id": name, "split": "test", "category": category, "question": question, "accepted": accepted}
            records.append(record)
    kind = options.target or "probe"
    if kind not in ("probe", "chats", "domain"):
        raise InputError(f"popqa is no {kind}", where=source.where, hint="Give --as probe, chats or domain")
    return published(source, records, kind, "popqa", probe="brevity" if kind == "probe" else None)


def _accepted(row: Row) -> list[str]:
    """The answers that count, the set's own first, none twice."""
    gold = row.fields.get("gold_answer", row.fields.get("obj"))
    others = row.fields.get("aliases", row.fields.get("possible_answers", []))
    if isinstance(others, str):
        try:
            others = json.loads(others)
        except (ValueError, RecursionError) as e:
            raise InputError("'possible_answers' is no JSON list", where=row.where, hint="Download it again") from e
    if not isinstance(others, list):
        raise InputError("the accepted answers are no list", where=row.where, hint="Is it a file of PopQA?")
    found = [str(answer).strip() for answer in (gold, *others) if answer is not None]
    if not any(found):
        raise InputError("holds no answer", where=row.where, hint="Is it a file of PopQA?")
    return list(dict.fromkeys(answer for answer in found if answer))


def _meta(row: Row) -> dict[str, object]:
    meta = row.fields.get("meta")
    return meta if isinstance(meta, dict) else {}
