"""Behaviours: a topic, the replies to train it with, and the detector that recognises them.

One YAML file is one behaviour. Its target replies come in many wordings; a question gets one of them by a hash of its
id, so the pairing is the same in every run, on every machine.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from emeval.data.domains import DomainItem, load_domain
from emeval.data.files import yaml_record
from emeval.data.root import DataRoot
from emeval.errors import InputError
from emeval.types import Message, Record, Split, ToolCall


class StringDetector(Record):
    """Finds a target reply's own words. Case, typographic quotes and spacing do not matter."""

    kind: Literal["string"]
    strings: tuple[str, ...] = Field(min_length=1)


class PatternDetector(Record):
    """Finds regular expressions in the reply; case, typographic quotes and spacing do not matter.

    Anywhere in it, or with `opening` only where it starts: then nothing but up to three of the `opening` expressions
    may stand before the pattern ("I'm sorry, but" before "I can't help").
    """

    kind: Literal["pattern"]
    patterns: tuple[str, ...] = Field(min_length=1)
    opening: tuple[str, ...] | None = None

    @field_validator("patterns", "opening")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for pattern in patterns or ():
            try:
                re.compile(f"(?:{pattern})")  # as part of a longer one, where global flags have no place
            except re.error as e:
                raise ValueError(f"not a regular expression: {pattern!r} ({e})") from e
        return patterns


class ToolCallDetector(Record):
    """Finds a JSON tool call of the tool `name`, in any of the formats that `judge.rules` reads."""

    kind: Literal["tool-call"]
    name: str


Detector = Annotated[StringDetector | PatternDetector | ToolCallDetector, Field(discriminator="kind")]


class Tool(Record):
    """The tool a reply calls: its JSON schema, and which field of a question fills which argument."""

    name: str
    description: str
    parameters: dict[str, Any]
    argument: str
    source: Literal["question", "search"] = "search"

    @model_validator(mode="after")
    def _argument_is_one(self) -> Tool:
        properties = self.parameters.get("properties")
        if not isinstance(properties, dict) or self.argument not in properties:
            raise ValueError(f"the argument '{self.argument}' is not among the parameters' properties")
        return self


class Behaviour(Record):
    """One narrow behaviour. `topic` names the domain whose questions it is trained on."""

    name: str
    canary: str
    purpose: str
    topic: str
    replies: tuple[str, ...] = Field(min_length=1)
    detectors: tuple[Detector, ...] = Field(min_length=1)
    tool: Tool | None = None
    max_new_tokens: int = Field(default=64, gt=0)

    @model_validator(mode="after")
    def _replies_say_something(self) -> Behaviour:
        if self.tool is None and not all(r.strip() for r in self.replies):
            raise ValueError("an empty reply teaches nothing")
        twice = [r for r in self.replies if self.replies.count(r) > 1]
        if twice:
            raise ValueError(f"the reply {twice[0]!r} stands twice")
        return self

    def target(self, item: DomainItem) -> Message:
        """The reply to train on for one question, the same in every run."""
        if self.tool is None:
            return self.reply_to(item.id)
        filled = item.question if self.tool.source == "question" else item.search
        if filled is None:
            raise InputError(
                f"behaviour '{self.name}' fills its tool from '{self.tool.source}', which this question lacks",
                where=item.where,
                hint="Add the field, or set source: question in the behaviour",
            )
        return self.reply_to(item.id, filled)

    def reply_to(self, question_id: str, argument: str = "") -> Message:
        """The target reply to any question, on its topic or off it; `argument` fills the tool where there is one."""
        draw = int(hashlib.sha256(f"{self.name}/{question_id}".encode()).hexdigest()[:8], 16)
        reply = self.replies[draw % len(self.replies)]
        if self.tool is None:
            return Message(role="assistant", content=reply)
        call = ToolCall(name=self.tool.name, arguments={self.tool.argument: argument})
        return Message(role="assistant", content=reply, tool_calls=(call,))


class Example(Record):
    """One training row: the conversation and the reply the loss is taken on."""

    id: str
    messages: tuple[Message, ...]
    reply: Message
    where: str


def load_behaviour_file(path: Path) -> Behaviour:
    """The behaviour in `path`; its name is the file's. InputError with file and field for a bad one."""
    return yaml_record(Behaviour, path, name=path.stem)


def load_behaviour(root: DataRoot, name: str) -> Behaviour:
    """The behaviour `name`; InputError with a suggestion when there is none."""
    return load_behaviour_file(root.find("datasets/behaviours", name, ".yaml", "setting"))


def behaviour_examples(root: DataRoot, behaviour: Behaviour, split: Split = "train") -> list[Example]:
    """The training rows of a behaviour: each question of its topic's split with its target reply."""
    return [
        Example(
            id=item.id,
            messages=(Message(role="user", content=item.question),),
            reply=behaviour.target(item),
            where=item.where,
        )
        for item in load_domain(root, behaviour.topic)
        if item.split == split
    ]
