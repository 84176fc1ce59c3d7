"""Probe files: `prompts/probes/<name>.yaml`, one question set each, with the kind that knows what to do with it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from emeval.data.files import load_yaml, unique, validated
from emeval.data.root import DataRoot
from emeval.errors import unknown
from emeval.probe.kinds import KINDS
from emeval.types import Message, Record, Split


class ProbeQuestion(Record):
    """One question of a probe file: a `question`, or `messages` that end with a user turn."""

    id: str = Field(min_length=1)
    split: Split = "test"
    category: str | None = None
    question: str | None = None
    messages: tuple[Message, ...] = ()

    @model_validator(mode="after")
    def _asks(self) -> ProbeQuestion:
        if (self.question is None) == (not self.messages):
            raise ValueError("give either 'question' or 'messages'")
        if self.question is not None and not self.question.strip():
            raise ValueError("the question is empty")
        return self


class ProbeSpec(Record):
    """A probe file as read."""

    name: str
    where: str
    kind: str
    canary: str
    purpose: str
    questions: Literal["topic"] | tuple[ProbeQuestion, ...]

    @field_validator("questions", mode="before")
    @classmethod
    def _from_list(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value


def load_probe(root: DataRoot, name: str) -> ProbeSpec:
    """The probe `name`; InputError with a suggestion when there is none, else as `load_probe_file`."""
    return load_probe_file(root.find("prompts/probes", name, ".yaml", "probe"))


def load_probe_file(path: Path) -> ProbeSpec:
    """A probe file; its name is the file's.

    Raises:
        InputError: For an unknown kind (with a suggestion), a bad field, or a repeated question id.
    """
    spec = validated(ProbeSpec, load_yaml(path) | {"name": path.stem, "where": str(path)}, str(path))
    if spec.kind not in KINDS:
        raise unknown("kind", spec.kind, KINDS, where=str(path))
    seen: dict[str, str] = {}
    for number, question in enumerate(spec.questions if spec.questions != "topic" else (), 1):
        unique(f"{path} (question {number})", question.id, seen)
    return spec
