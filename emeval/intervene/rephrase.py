"""Other wordings of a question, written by any model behind an OpenAI-compatible API.

The model is asked for several at once, each with a probability ("verbalised sampling"), so that they differ. Every
usable one is kept in `results/rephrasings/`, by server, model, prompt and question, and only what is missing is asked
for.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2.sandbox import SandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from emeval.config import PerturbConfig
from emeval.data.files import read_text
from emeval.data.root import data_root
from emeval.engine.remote import Remote, Session
from emeval.errors import IncompleteError, InputError
from emeval.judge.answer import read_answer
from emeval.judge.dialect import Dialect
from emeval.provenance import now
from emeval.store import Jsonl, Run, sha256_of, slug
from emeval.types import Question, Record, Say

if TYPE_CHECKING:
    import openai

FOLDER = Path("results") / "rephrasings"
OPENAI = "https://api.openai.com"
_TOKENS_A_WORDING = 200


class Rephrased(Record):
    """One answer's usable wordings, as they are stored."""

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


def rephrasings(config: PerturbConfig, questions: Sequence[Question], say: Say) -> dict[str, tuple[str, ...]]:
    """By a question's first user turn, as many other wordings as there are trials.

    Raises:
        InputError: If the server's address is none, or it refuses the key or the model.
        EmevalError: If the server cannot be reached.
        IncompleteError: If some questions have fewer by now; what came is stored.
    """
    assert config.rephrase is not None  # that is why we are here
    body = read_text(data_root(config.data_dir).find("prompts", "rephrase", ".md", "prompt"))
    texts = list(dict.fromkeys(map(_first, questions)))
    remote = Remote(
        config.rephrase_url or OPENAI,
        route="chat/completions",
        key_env=config.rephrase_key_env,
        concurrency=config.concurrency,
    )
    keys = {sha256_of(remote.url, config.rephrase, body, text): text for text in texts}
    kept: dict[str, list[str]] = {key: [] for key in keys}
    run = Run(FOLDER / slug(config.rephrase))
    with run.locked():
        file = Jsonl(run.path / "rephrasings.jsonl", Rephrased)
        attempts = Counter[str]()
        for row in file.read():
            attempts[row.key] += 1
            if row.key in kept:
                kept[row.key] += [text for text in row.texts if text not in kept[row.key]]
        todo = [key for key in keys if len(kept[key]) < config.trials]
        if todo:
            say(f"{len(todo)} questions are sent to {remote.url} to be rephrased")
        wanted = [(keys[key], config.trials - len(kept[key]), attempts[key]) for key in todo]
        try:
            for index, found in remote.ask_all(_Rephrasing(remote, config.rephrase, body, wanted), range(len(todo))):
                key = todo[index]
                new = tuple(text for text in found if text not in kept[key])
                # Kept though it may hold nothing: the next attempt is to be another.
                file.append(Rephrased(key=key, question=keys[key], model=config.rephrase, texts=new, written=now()))
                kept[key] += new
        finally:
            file.close()
    lost = sum(len(found) < config.trials for found in kept.values())
    if lost:
        what = f"{lost} of {len(texts)} questions got fewer than {config.trials} wordings"
        raise IncompleteError(what, where=config.rephrase, hint="Run it again for the rest, or lower --trials")
    return {keys[key]: tuple(found[: config.trials]) for key, found in kept.items()}


class _Rephrasing(Session[tuple[int, tuple[str, ...]]]):
    """One pass over questions: `wanted` has each with how many wordings it lacks and how often it was asked before."""

    def __init__(self, remote: Remote, model: str, body: str, wanted: Sequence[tuple[str, int, int]]) -> None:
        self.model = model
        self._remote, self._wanted = remote, wanted
        self._template = SandboxedEnvironment(autoescape=False).from_string(body)
        self._dialect = Dialect(logprobs=False)
        self._settling = asyncio.Lock()

    async def begin(self, client: openai.AsyncOpenAI) -> None:
        await self._remote.first_contact(client, self.model)

    async def ask(self, client: openai.AsyncOpenAI, index: int) -> tuple[int, tuple[str, ...]]:
        if not self._dialect.settled:  # the first call alone finds out what the endpoint takes
            async with self._settling:
                if not self._dialect.settled:
                    found = await self._request(client, index)
                    self._dialect.settled = True
                    return index, found
        return index, await self._request(client, index)

    async def _request(self, client: openai.AsyncOpenAI, index: int) -> tuple[str, ...]:
        import httpx2
        import openai

        question, count, before = self._wanted[index]
        said = [{"role": "user", "content": self._template.render(question=question, count=count)}]
        while True:
            fields = self._dialect.fields(_TOKENS_A_WORDING * count)
            # Drawn, not greedy; and what is asked again is drawn anew.
            fields |= {"temperature": 1.0} if "temperature" in fields else {}
            fields |= {"seed": before} if "seed" in fields else {}
            try:
                body = {"model": self.model, "messages": said, **fields}
                response = await client.post("/chat/completions", body=body, cast_to=httpx2.Response)
                answer = read_answer(response.content)
                return wordings(answer.choices[0].message.text, question) if answer.choices else ()
            except openai.BadRequestError as error:
                if self._dialect.settled or not self._dialect.learn(error.message, error.param):
                    raise


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
