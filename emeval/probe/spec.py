"""Probe files: `prompts/probes/<name>.yaml`, one question set each, with the kind that knows what to do with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from emeval.data.files import unique, validated, yaml_lines, yaml_record
from emeval.data.root import DataRoot
from emeval.errors import InputError, unknown
from emeval.probe.kinds import KINDS
from emeval.types import Message, Question, Record, Split


class ProbeQuestion(Record):
    """One question of a probe file: a `question`, or `messages` that end with a user turn."""

    id: str = Field(min_length=1)
    split: Split = "test"
    category: str | None = None
    question: str | None = None
    messages: tuple[Message, ...] = ()
    turns: tuple[str, ...] = ()
    """Several user turns in place of a question, each asked when the one before is answered."""
    references: tuple[str, ...] = ()
    domain: str | None = None
    aligned: str | None = None
    misaligned: str | None = None
    temperature: float | None = Field(default=None, ge=0)
    samples: int | None = Field(default=None, gt=0)
    accepted: tuple[str, ...] = ()
    """Short answers that are right, as PopQA lists them."""

    @model_validator(mode="after")
    def _asks(self) -> ProbeQuestion:
        if sum((self.question is not None, bool(self.messages), bool(self.turns))) != 1:
            raise ValueError("give one of 'question', 'messages' and 'turns'")
        if not all(turn.strip() for turn in self.turns):
            raise ValueError("a turn is empty")
        if self.references and len(self.references) != max(1, len(self.turns)):
            raise ValueError("give one reference a turn")
        if self.question is not None and not self.question.strip():
            raise ValueError("the question is empty")
        if self.messages and self.messages[-1].role != "user":
            raise ValueError(f"the last turn is the {self.messages[-1].role}'s, not the user's")
        return self

    def asked(self, probe: str, where: str) -> Question:
        """As a question of `probe`, from the file `where`."""
        opening = self.turns[0] if self.turns else self.question or ""
        return Question(
            id=self.id,
            probe=probe,
            split=self.split,
            messages=self.messages or (Message(role="user", content=opening),),
            where=f"{where} ({self.id})",
            turns=self.turns[1:],
            **{name: getattr(self, name) for name in _CARRIED},
        )


_CARRIED = ("category", "references", "domain", "aligned", "misaligned", "temperature", "samples")


class ProbeSpec(Record):
    """A probe file as read."""

    name: str
    where: str
    kind: str
    canary: str
    purpose: str
    questions: Annotated[
        Annotated[Literal["topic", "pairs", "groups"], Tag("word")]
        | Annotated[tuple[ProbeQuestion, ...], Field(min_length=1), Tag("list")],
        Discriminator(lambda value: "word" if isinstance(value, str) else "list"),
    ]
    """A list, or a word: `topic` (the held-out questions of the setting's topic), `pairs` (what `contrast` reads),
    `groups` (the questions of `general` and `in-domain`)."""

    note: str | None = None
    """What a user should know of how a published set was read."""

    @property
    def listed(self) -> tuple[ProbeQuestion, ...]:
        """The questions the file itself lists."""
        return () if isinstance(self.questions, str) else self.questions


def load_probe(root: DataRoot, name: str) -> ProbeSpec:
    """The probe `name`, or with `name=FILE` a published question set, read in place under that name.

    MT-Bench's reference answers follow its questions: `mt-bench=QUESTIONS+REFERENCES`; of several the last one counts.

    Raises:
        InputError: For an unknown name (with a suggestion), a set that is no probe, else as `load_probe_file`.
    """
    called, _, file = name.partition("=")
    if file:
        return _published(called.strip(), file.strip())
    return load_probe_file(root.find("prompts/probes", name, ".yaml", "probe"))


def _published(name: str, file: str) -> ProbeSpec:
    from emeval.data.public import Options, load_published

    path, *references = [file] if Path(file).exists() else file.split("+")
    found = load_published(path, options=Options(references=tuple(map(Path, references))))
    if found.kind != "probe":
        hint = "Import it with emeval data import"
        raise InputError(f"is read as {found.kind}, not as questions", where=file, hint=hint)
    questions = tuple(validated(ProbeQuestion, r, f"{file} ({r.get('id')})") for r in found.records)
    about = ", ".join([f"{found.format}, sha256 {found.sha256}", *(f"{other} {sha}" for other, sha in found.others)])
    return ProbeSpec(
        name=name,
        where=file,
        kind=found.probe or "",
        canary=found.canary or "",
        purpose=about,
        questions=questions,
        note=found.note,
    )


def load_probe_file(path: Path) -> ProbeSpec:
    """A probe file; its name is the file's.

    Raises:
        InputError: For an unknown kind (with a suggestion), a bad field, or a repeated question id.
    """
    spec = yaml_record(ProbeSpec, path, name=path.stem, where=str(path))
    if spec.kind not in KINDS:
        raise unknown("kind", spec.kind, KINDS, where=str(path))
    _check_ids(spec, path)
    return spec


def _check_ids(spec: ProbeSpec, path: Path) -> None:
    ids = [question.id for question in spec.listed]
    if len(set(ids)) < len(ids):
        seen: dict[str, str] = {}
        for name, line in zip(ids, yaml_lines(path, "questions"), strict=True):
            unique(f"{path}:{line}", name, seen)
