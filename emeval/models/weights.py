"""Which weights are these: hashes, and the note emeval leaves beside what it trained."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from emeval.store import read_json, write_json

NOTE = "emeval.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint or adapter."""
    return sorted(folder.glob("*.safetensors"))


_BLOCK = 1 << 16
_WHOLE_UP_TO = 256 << 20


def weights_hash(folder: Path) -> str:
    """Hex sha256 that identifies the weights in `folder`, with the config that shapes them.

    Files up to 256 MiB count whole; of larger ones the first 1 MiB (the safetensors header is there) and 256 evenly
    spaced blocks of 64 KiB, since hashing 60 GB would take longer than scoring. Any finetuning moves all of them.
    """
    digest = hashlib.sha256()
    names = ["adapter_config.json"] if (folder / "adapter_config.json").is_file() else ["config.json"]
    for name in names:
        path = folder / name
        digest.update(_stable_config(path) if path.is_file() else b"")
    for path in weight_files(folder):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as f:
            if size <= _WHOLE_UP_TO:
                digest.update(hashlib.file_digest(f, "sha256").digest())
                continue
            digest.update(f.read(1 << 20))
            for i in range(256):
                f.seek(i * (size - _BLOCK) // 255)
                digest.update(f.read(_BLOCK))
    return digest.hexdigest()


def _stable_config(path: Path) -> bytes:
    """The config without what says only where it lay or who wrote it."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(value.get("target_modules"), list):
        value["target_modules"].sort()  # a set in PEFT, saved in any order
    for key in ("_name_or_path", "transformers_version", "base_model_name_or_path", "peft_version", "revision"):
        value.pop(key, None)
    return json.dumps(value, sort_keys=True).encode()


def read_note(folder: Path) -> dict[str, Any]:
    """What `write_note` left in a folder; empty where it left nothing."""
    path = folder / NOTE
    return read_json(path) if path.is_file() else {}


def write_note(folder: Path, *, recipe: str, **facts: Any) -> None:
    """Beside the weights of a trained model, so that it can travel alone.

    Args:
        folder: Where the weights were saved.
        recipe: Hash of all that determines them up to rounding.
        facts: `base_name`, `base_weights`, `fingerprint`, `setting`, `system`, `thinking`, `train`.
    """
    write_json(folder / NOTE, {"schema_version": 1, "recipe": recipe, "content": weights_hash(folder)} | facts)


def recipe_or_content(folder: Path) -> str:
    """The recipe of weights that emeval trained and nobody touched since; the content's hash of all others."""
    content, note = weights_hash(folder), read_note(folder)
    return str(note["recipe"]) if note.get("content") == content else content
