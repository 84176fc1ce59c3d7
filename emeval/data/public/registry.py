"""`datasets/public.yaml`: the published sets that emeval knows by name, and where each is to be had."""

from __future__ import annotations

import re

from pydantic import Field, field_validator, model_validator

from emeval.data.files import yaml_record
from emeval.data.public import FORMATS
from emeval.data.public.published import Kind
from emeval.data.root import data_root
from emeval.errors import InputError, unknown
from emeval.types import Record

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
"""What a set may be called: it becomes a file's name."""

_SHA = re.compile(r"[0-9a-f]{64}")


class Entry(Record):
    """One published file. Without a sha256 it is unpinned: nobody here has held it in hands.

    It lies at `url`, or as `file` in the dataset `hub` of the Hugging Face hub; or neither, where it can only be got
    by hand.
    """

    format: str
    kind: Kind
    licence: str
    homepage: str
    citation: str
    url: str | None = None
    hub: str | None = None
    file: str | None = None
    revision: str | None = None
    sha256: str | None = None
    note: str | None = None

    @field_validator("format")
    @classmethod
    def _is_read(cls, format: str) -> str:
        if format not in FORMATS:
            raise ValueError(f"no format is called so; known: {', '.join(FORMATS)}")
        return format

    @field_validator("url")
    @classmethod
    def _is_safe(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith("https://"):
            raise ValueError("is no https address")
        return url

    @field_validator("sha256")
    @classmethod
    def _is_whole(cls, sha256: str | None) -> str | None:
        return None if sha256 is None else checked_sha256(sha256, "sha256")

    @model_validator(mode="after")
    def _is_somewhere(self) -> Entry:
        if self.url and self.hub:
            raise ValueError("give either 'url' or 'hub'")
        if (self.hub is None) != (self.file is None):
            raise ValueError("'hub' and 'file' go together")
        return self


class Registry(Record):
    """The file as a whole."""

    sets: dict[str, Entry] = Field(min_length=1)

    @field_validator("sets")
    @classmethod
    def _can_be_told_apart(cls, sets: dict[str, Entry]) -> dict[str, Entry]:
        for name in sets:
            if not NAME.fullmatch(name) or name in FORMATS:
                raise ValueError(f"'{name}' is a format's name, or none that a file can have")
        return sets


def checked_sha256(text: str, where: str) -> str:
    """64 hex digits."""
    if not _SHA.fullmatch(text.lower()):
        raise InputError("not a sha256: that is 64 hex digits", where=where, hint="Run: sha256sum FILE")
    return text.lower()


def registry() -> dict[str, Entry]:
    """The published sets by name."""
    return yaml_record(Registry, data_root().shipped / "datasets" / "public.yaml").sets


def known_set(name: str) -> Entry:
    """A published set; InputError with a suggestion for a name that is none."""
    sets = registry()
    if name not in sets:
        raise unknown("published set", name, sets)
    return sets[name]
