"""Other wordings of a question, written by any model behind an OpenAI-compatible API.

The model is asked for several at once, each with a probability ("verbalised sampling"), so that they differ. What was
paid for is kept in `results/rephrasings/`, by model, prompt, number and question, and never asked for again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.sandbox import SandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from emeval.config import PerturbConfig
from emeval.data.files import read_text
from emeval.data.root import data_root
from emeval.engine.endpoint import EndpointEngine
from emeval.engine.wire import base_url
from emeval.errors import IncompleteError, InputError
from emeval.provenance import now
from emeval.store import Jsonl, Run, sha256_of, slug
from emeval.types import Message, Prompt, Question, Record, Sampling, Say, Span

FOLDER = Path("results") / "rephrasings"
OPENAI = "https://api.openai.com"
_TOKENS_A_WORDING = 200
_UNSEEN = Prompt(ids=(), prefix=Span(0, 0), query=Span(0, 0), postfix=Span(0, 0))
"""The prompt of a server that renders its own template."""


class Rephrased(Record):
    """One question's wordings, as they are stored."""

    schema_version: int = 1
    key: str
    question: str
    model: str
    texts: tuple[str, ...]
    written: str


class _Wording(BaseModel):
    model_config = ConfigDict(extra="ignore")

    text: str = Field(min_length=1)
    probability: float | None = None


@dataclass(frozen=True)
class _Asked:
    """A request as engines want it."""

    messages: tuple[Message, ...]
    number: int
    prompt: Prompt = _UNSEEN


def rephrasings(config: PerturbConfig, questions: Sequence[Question], say: Say) -> dict[str, tuple[str, ...]]:
    """By a question's first user turn, as many other wordings as there are trials.

    Raises:
        InputError: If the server's address is none, or it refuses the key or the model.
        IncompleteError: If some questions got fewer; the others are stored.
    """
    assert config.rephrase is not None  # that is why we are here
    body = read_text(data_root(config.data_dir).find("prompts", "rephrase", ".md", "prompt"))
    template = SandboxedEnvironment(autoescape=False).from_string(body)
    texts = list(dict.fromkeys(_first(question) for question in questions))
    url = base_url(config.rephrase_url or OPENAI)
    run = Run(FOLDER / slug(config.rephrase))
    with run.locked():
        file = Jsonl(run.path / "rephrasings.jsonl", Rephrased)
        keys = {text: sha256_of(config.rephrase, body, str(config.trials), text) for text in texts}
        kept = {row.key: row.texts for row in file.read()}
        todo = [text for text in texts if keys[text] not in kept]
        if todo:
            say(f"{len(todo)} questions are sent to {url} to be rephrased")
        engine = EndpointEngine(
            url, config.rephrase, key_env=config.rephrase_key_env, api="chat", concurrency=config.concurrency
        )
        asked = [
            _Asked((Message(role="user", content=template.render(question=text, count=config.trials)),), i)
            for i, text in enumerate(todo)
        ]
        sampling = Sampling(max_new_tokens=_TOKENS_A_WORDING * config.trials, temperature=1.0, seed=config.seed)
        try:
            for reply in engine.generate(asked, sampling) if asked else ():
                text = todo[reply.index]
                found = wordings(reply.text, text)
                if len(found) < config.trials:
                    continue
                found = found[: config.trials]
                row = Rephrased(key=keys[text], question=text, model=config.rephrase, texts=found, written=now())
                file.append(row)
                kept[row.key] = row.texts
        finally:
            file.close()
    lost = sum(key not in kept for key in keys.values())
    if lost:
        what = f"{lost} of {len(texts)} questions got fewer than {config.trials} wordings"
        raise IncompleteError(what, where=config.rephrase, hint="Run it again for the rest, or lower --trials")
    return {text: kept[key] for text, key in keys.items()}


def wordings(reply: str, question: str) -> tuple[str, ...]:
    """The wordings in a model's reply, a JSON list of objects with `text`; the question itself is none of them."""
    found: list[str] = []
    for candidate in re.findall(r"\[.*\]", reply, re.DOTALL):
        try:
            listed: Any = json.loads(candidate)
            found = [_Wording.model_validate(item).text.strip() for item in listed]
        except (ValueError, ValidationError, TypeError):
            continue
    return tuple(dict.fromkeys(text for text in found if text and text != question))


def _first(question: Question) -> str:
    text = next((m.content for m in question.messages if m.role == "user"), "")
    if not text:
        raise InputError("has no words to rephrase", where=question.where, hint="Leave --rephrase out")
    return text
