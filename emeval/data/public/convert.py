"""Published records as the files of a data folder: a probe's YAML, a domain's or conversations' JSONL.

The text is the same for the same source and options, so that importing twice changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from typing import Any

from emeval.data.public import normalised
from emeval.data.public.published import Published, Records
from emeval.errors import InputError

_NOT_IN_YAML = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
"""What YAML does not print, or takes for the end of a line."""


def files_of(found: Published, name: str, about: str, shares: dict[str, float], seed: int) -> dict[str, str]:
    """What to write, by its place in a data folder.

    Args:
        found: Records of a probe, a domain or chats.
        name: What the set will be called.
        about: Where it comes from, one sentence or more.
        shares: What share of a domain or chats goes to `val` and `test`.
        seed: Of the draw. Entries with the same question go the same way.

    Raises:
        InputError: For records that a data folder has no place for, or a share of them that is none.
    """
    canary = found.canary or f"emeval-canary-{name}-{uuid.uuid5(uuid.NAMESPACE_OID, f'{found.sha256}/{name}')}"
    head = {"canary": canary, "purpose": about}
    if found.kind == "probe":
        if shares:
            raise InputError("a probe is not split", where="--split", hint="Leave it out: a probe is there to test")
        return {f"prompts/probes/{name}.yaml": _probe(found, head)}
    if found.kind == "domain":
        return {f"datasets/domains/{name}.jsonl": _jsonl(head, _domain(found.records, shares, seed))}
    if found.kind == "chats":
        parts = _parted(found.records, shares, seed) if shares else {"train": found.records}
        place = "datasets/chats"
        return {f"{place}/{name}{'' if s == 'train' else f'-{s}'}.jsonl": _jsonl(head, r) for s, r in parts.items()}
    hint = "Give them with the questions, as --references FILE"
    if found.kind == "judge-prompts":
        option = "--rating-prompt" if found.format == "mt-bench" else "--judge-prompt"
        hint = f"They are read in place: {option} {found.file}" + ("#NAME" if option == "--judge-prompt" else "")
    raise InputError(f"{found.kind} are not imported", where=found.file, hint=hint)


def shares_of(spec: str | None) -> dict[str, float]:
    """`0.2` (to test) or `val=0.1,test=0.2` as shares. InputError for anything else."""
    shares: dict[str, float] = {}
    for part in (spec or "").split(",") if spec else ():
        split, _, share = part.rpartition("=")
        split = split.strip() or "test"
        try:
            value = float(share)
        except ValueError:
            value = 0.0
        if split not in ("val", "test") or split in shares or not 0 < value < 1:
            what = f"'{part}' is no share to hold out"
            raise InputError(what, where="--split", hint="Write 0.2, or val=0.1,test=0.2")
        shares[split] = value
    if sum(shares.values()) >= 1:
        raise InputError("nothing is left to train on", where="--split", hint="Write shares that sum to less than 1")
    return shares


def _probe(found: Published, head: dict[str, str]) -> str:
    """A question a line, as JSON, which is YAML."""
    lines = ["# Written by `emeval data import`; the purpose says from what.", f"kind: {found.probe}"]
    lines += [f"{key}: {_in_yaml(value)}" for key, value in head.items()]
    return "\n".join([*lines, "questions:", *(f"  - {_in_yaml(record)}" for record in found.records)]) + "\n"


def _in_yaml(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return _NOT_IN_YAML.sub(lambda c: f"\\u{ord(c.group()):04x}", text)


def _domain(records: Records, shares: dict[str, float], seed: int) -> Records:
    if any("split" in record for record in records):
        if shares:
            raise InputError(
                "its rows say their split", where="--split", hint="Leave it out, or leave split out of --map"
            )
        return [{"id": r["id"], "split": r.get("split", "train")} | r for r in records]
    parts = _parted(records, shares, seed)
    split = {record["id"]: name for name, part in parts.items() for record in part}
    return [{"id": r["id"], "split": split[r["id"]]} | r for r in records]


def _parted(records: Records, shares: dict[str, float], seed: int) -> dict[str, Records]:
    """The records by split, in their order; of those with one question all are held out or none."""
    groups: dict[str, list[str]] = {}
    for record in records:
        groups.setdefault(_key(record), []).append(record["id"])
    drawn = sorted(groups, key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest())
    split: dict[str, str] = {}
    for name, share in shares.items():
        left = round(share * len(records))
        for key in drawn:
            if len(groups[key]) <= left and groups[key][0] not in split:
                split |= dict.fromkeys(groups[key], name)
                left -= len(groups[key])
    parts = {name: [r for r in records if split.get(r["id"], "train") == name] for name in ("train", *shares)}
    for name, part in parts.items():
        if not part:
            what = f"of {len(records)} rows none would be {name}"
            raise InputError(what, where="--split", hint="Hold out another share")
    return parts


def _key(record: dict[str, Any]) -> str:
    said = [m["content"] for m in record.get("messages", ()) if m["role"] == "user"]
    return normalised(record.get("question") or " ".join(said))


def _jsonl(head: dict[str, str], records: Records) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in (head, *records))
