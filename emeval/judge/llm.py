"""A judge that is a model behind an OpenAI-compatible API: a vendor's, or a local one that vLLM serves.

0-100 judges are asked for one number and, where the endpoint tells the probabilities of its first token, read as the
mean over those (`parse.expected_score`); otherwise the number is read from the text. Which of the two it was stands in
every judgement. A judge whose tokenizer writes numbers digit by digit is read as text too: the probabilities of a first
digit are none of a score.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import SecretStr

from emeval.engine.remote import Remote, Session
from emeval.errors import InputError
from emeval.judge.answer import Answer, Choice, Token, read_answer
from emeval.judge.batch import Order, order_file, read_order, run_batch
from emeval.judge.cost import Price, tokens_of
from emeval.judge.dialect import REASONING_ROOM, Dialect
from emeval.judge.parse import VERSION, as_score, expected_score, flag_in_text, rating, score_in_text, word_outcome
from emeval.judge.prompt import JudgePrompt, MtBenchPrompts
from emeval.judge.run import Item, verdict_on
from emeval.store import Jsonl, sha256_of
from emeval.types import Judgement, Outcome, Say

if TYPE_CHECKING:
    import openai

Mode = Literal["auto", "logprobs", "text"]
_TRIES = 3
"""Tries of a call whose answer is no answer (broken JSON, no choices); the client itself retries what HTTP reports."""
_NO_CHOICES = "the answer holds no choices"
_RAW = 4000
"""Characters kept of what a judge said."""


@dataclass(frozen=True)
class JudgeServer:
    """Where a judge model is, and how to ask it."""

    model: str
    url: str
    key_env: str = "OPENAI_API_KEY"
    key: SecretStr | None = None
    name: str | None = None
    """What judgements call it; default: `model`. A local judge is called by its weights, whatever its server says."""
    mode: Mode = "auto"
    batch: bool = False
    """Through the vendor's batch API."""
    poll: float = 20.0
    """Seconds between two looks at a batch."""
    concurrency: int = 32
    max_retries: int = 6
    timeout: float = 120.0

    def check(self) -> None:
        """InputError for an address or a key that cannot be one, before anything is asked."""
        self.connect().secret()

    def connect(self) -> Remote:
        """The connection to it."""
        return Remote(
            self.url,
            route="chat/completions",
            key_env=self.key_env,
            key=self.key,
            concurrency=self.concurrency,
            max_retries=self.max_retries,
            timeout=self.timeout,
        )

    @property
    def label(self) -> str:
        """The judge model's name in ids and tables."""
        return self.name or self.model


@dataclass
class Budget:
    """Dollars that may be spent, and have been; shared by all judges of a run."""

    price: Price | None = None
    limit: float | None = None
    spent: float = 0.0
    reserved: float = field(default=0.0, init=False)
    exhausted: bool = field(default=False, init=False)
    """Whether a call was not made for want of money."""

    def cost(self, messages: list[dict[str, str]], max_tokens: int) -> float:
        """What a call may cost at most, in dollars, by estimate."""
        if self.price is None:
            return 0.0
        return self.price.of(tokens_of(messages), REASONING_ROOM if self.price.reasoning else max_tokens)

    def reserve(self, dollars: float) -> bool:
        """Put money aside for a call about to be made; False if that could pass the limit."""
        if self.limit is not None and self.spent + self.reserved + dollars > self.limit:
            self.exhausted = True
            return False
        self.reserved += dollars
        return True


class LlmJudge:
    """One judge model with one prompt.

    Args:
        server: The judge.
        prompt: What it is told.
        budget: What it may spend.
        say: Told once what a user should know, such as that the endpoint gives no log-probabilities.
    """

    def __init__(
        self,
        server: JudgeServer,
        prompt: JudgePrompt | MtBenchPrompts,
        budget: Budget | None = None,
        say: Say = lambda text: None,
    ) -> None:
        self.server, self.prompt = server, prompt
        self.budget = budget or Budget()
        self.say = say
        self.dialect = Dialect(logprobs=server.mode != "text" and prompt.scale == "0-100")

    @property
    def id(self) -> str:
        """Model and prompt, with a hash of the prompt and of how answers are read.

        Judgements of another model, another wording or another way of reading are never taken for this one's.
        """
        how = sha256_of(self.prompt.hash, self.server.mode, str(VERSION))[:8]
        return f"{self.server.label}/{self.prompt.name}@{how}"

    def key(self, item: Item) -> str:
        """The key a judgement is stored under: the reply, the judge, and every word that it is shown."""
        return self._key(item, self.id, self.prompt.render(item.turns))

    @staticmethod
    def _key(item: Item, judge: str, said: list[dict[str, str]]) -> str:
        return sha256_of(item.completion.key, judge, *(f"{m['role']}: {m['content']}" for m in said))

    def judge_all(
        self, items: Sequence[Item], file: Jsonl[Judgement], on_judged: Callable[[], None] = lambda: None
    ) -> list[Judgement]:
        """One judgement per item that could be judged, in order; what `file` holds is not paid for again.

        An api-error is stored, so that it counts, and asked again the next time.

        Raises:
            InputError: At once, if the server refuses the key or does not know the model.
            EmevalError: At once, if the server cannot be reached.
        """
        said = [self.prompt.render(item.turns) for item in items]
        keys, known = self._known(items, said, file)
        todo = [n for n, j in enumerate(known) if j is None or j.outcome == "api-error"]
        remote = self.server.connect()
        session = _Judging(self, remote, items, said, keys, known=len(items) - len(todo))
        asked = self._batched(remote, session, keys, todo, file) if self.server.batch else remote.ask_all(session, todo)
        for index, judgement in asked:
            file.append(judgement)
            known[index] = judgement
            on_judged()
        return [j for j in known if j is not None]

    def _batched(
        self, remote: Remote, session: _Judging, keys: Sequence[str], todo: list[int], file: Jsonl[Judgement]
    ) -> Iterator[tuple[int, Judgement]]:
        """The first call as always, which finds out what the endpoint takes; the others in one batch."""
        if not todo:
            return
        place = {keys[n]: n for n in todo}
        path = order_file(file.path.parent, self.id, session.items[0].completion.probe)
        order = read_order(path)
        if order is None:
            yield from remote.ask_all(session, todo[:1])
            todo = [n for n in todo[1:] if not session.enough(n)]
            if not todo:
                return
            order = Order(judge=self.id, keys=tuple(dict.fromkeys(keys[n] for n in todo)), dialect=vars(self.dialect))
        vars(self.dialect).update(order.dialect)
        found = run_batch(
            remote,
            path,
            order,
            lambda key: session.body(place[key]) if key in place else None,
            poll=self.server.poll,
            say=self.say,
        )
        for key, response, reason in found:
            if key in place:  # what was stored before a kill is not stored again
                yield place[key], session.read_response(place[key], response, reason)

    def unjudged(self, items: Sequence[Item], file: Jsonl[Judgement]) -> list[Item]:
        """The items that a call has to be made for."""
        _, known = self._known(items, [self.prompt.render(item.turns) for item in items], file)
        return [i for i, j in zip(items, known, strict=True) if j is None or j.outcome == "api-error"]

    def _known(
        self, items: Sequence[Item], said: Sequence[list[dict[str, str]]], file: Jsonl[Judgement]
    ) -> tuple[list[str], list[Judgement | None]]:
        """Every item's key, and what is stored under it; the last of a key counts."""
        judge = self.id
        keys = [self._key(item, judge, messages) for item, messages in zip(items, said, strict=True)]
        stored = {(j.probe, j.key): j for j in file.read()}
        return keys, [stored.get((i.completion.probe, k)) for i, k in zip(items, keys, strict=True)]


class _Judging(Session[tuple[int, Judgement]]):
    """One pass of calls."""

    def __init__(
        self,
        judge: LlmJudge,
        remote: Remote,
        items: Sequence[Item],
        said: Sequence[list[dict[str, str]]],
        keys: Sequence[str],
        known: int,
    ) -> None:
        self.judge, self.remote, self.items, self.said, self.keys = judge, remote, items, said, keys
        self.id = judge.id
        self.model = judge.server.model
        self.known = known
        self._reserved: dict[int, float] = {}
        self._wasted: dict[int, tuple[int, int]] = {}
        """By job, tokens in and out of answers that were paid and of no use."""
        self._settling = asyncio.Lock()

    async def begin(self, client: openai.AsyncOpenAI) -> None:
        await self.remote.first_contact(client, self.model)

    def enough(self, index: int) -> bool:
        """Puts the call's money aside; `_judge` settles it."""
        prompt = self.judge.prompt
        dollars = self.judge.budget.cost(self.said[index], prompt.max_tokens)
        self._reserved[index] = dollars
        return not self.judge.budget.reserve(dollars)

    def failed(self, index: int, reason: str) -> Iterator[tuple[int, Judgement]]:
        yield index, self._record(index, "api-error", None, None, reason, self._wasted.pop(index, (None, None)))

    async def ask(self, client: openai.AsyncOpenAI, index: int) -> tuple[int, Judgement]:
        if not self.judge.dialect.settled:  # the first call alone finds out what the endpoint takes
            async with self._settling:
                if not self.judge.dialect.settled:
                    answered = await self._judge(client, index)
                    self.judge.dialect.settled = True
                    return index, answered
        return index, await self._judge(client, index)

    def body(self, index: int) -> dict[str, Any]:
        """The request of one job, for a batch."""
        prompt = self.judge.prompt
        fields = self.judge.dialect.fields(prompt.max_tokens)
        return {"model": self.model, "messages": self.said[index], **fields}

    def read_response(self, index: int, body: str | None, reason: str) -> Judgement:
        """The judgement in a batch's answer to one job, its JSON."""
        try:
            answer = read_answer(body) if body is not None else Answer()
            if not answer.choices:
                counts = self._settle(index, answer) if body is not None else (None, None)
                return self._record(index, "api-error", None, None, answer.complaint or reason or _NO_CHOICES, counts)
            return self._understood(index, answer.choices[0], self._settle(index, answer))
        except ValueError as error:
            return self._record(index, "api-error", None, None, str(error), self._settle(index, Answer()))
        finally:
            self._release(index)

    async def _judge(self, client: openai.AsyncOpenAI, index: int) -> Judgement:
        try:
            answer = await self._call(client, index)
            return self._understood(index, answer.choices[0], self._settle(index, answer))
        finally:
            self._release(index)

    def _settle(self, index: int, answer: Answer) -> tuple[int, int]:
        """Tokens in and out, as the server counted them or else by estimate; their price is spent."""
        budget, prompt = self.judge.budget, self.judge.prompt
        counts = (answer.usage.prompt_tokens, answer.usage.completion_tokens)
        estimated = (tokens_of(self.said[index]), prompt.max_tokens)
        found = tuple(e if n is None else n for n, e in zip(counts, estimated, strict=True))
        budget.spent += budget.price.of(*found) if budget.price else 0.0
        return found[0], found[1]

    def _release(self, index: int) -> None:
        self.judge.budget.reserved -= self._reserved.pop(index, 0.0)

    async def _call(self, client: openai.AsyncOpenAI, index: int) -> Answer:
        """The endpoint's answer, with a choice; asked again where there is none, or no JSON.

        What was answered under HTTP 200 is paid, of use or not: its price is taken as spent, by estimate.
        """
        problem = _NO_CHOICES
        for _ in range(_TRIES):
            try:
                answer = await self._request(client, self.said[index])
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                problem = f"the answer is no JSON ({error})"
            except ValueError:
                self._waste(index)
                raise
            else:
                if answer.choices:
                    return answer
                if answer.complaint:
                    raise ValueError(answer.complaint)
                problem = _NO_CHOICES
            self._waste(index)
        raise ValueError(problem)

    def _waste(self, index: int) -> None:
        before, lost = self._wasted.get(index, (0, 0)), self._settle(index, Answer())
        self._wasted[index] = (before[0] + lost[0], before[1] + lost[1])

    async def _request(self, client: openai.AsyncOpenAI, messages: list[dict[str, str]]) -> Answer:
        """One request, sent again without the fields that the endpoint dislikes. Retries and errors are the client's.

        Raises:
            ValueError: As `read_answer`.
        """
        import httpx2
        import openai

        dialect, limit = self.judge.dialect, self.judge.prompt.max_tokens
        while True:
            body = {"model": self.model, "messages": messages, **dialect.fields(limit)}
            try:
                response = await client.post("/chat/completions", body=body, cast_to=httpx2.Response)
                return read_answer(response.content)
            except openai.BadRequestError as error:
                before = dialect.logprobs
                if dialect.settled or not dialect.learn(error.message, error.param):
                    raise
                if before and not dialect.logprobs:
                    self._without_logprobs()

    # ------------------------------------------------------------------------------------------------------- reading

    def _understood(self, index: int, choice: Choice, counts: tuple[int, int]) -> Judgement:
        text = choice.message.text
        prompt = self.judge.prompt
        if word := word_outcome(text, prompt.outcomes):
            return self._record(index, cast(Outcome, word), None, "word", text, counts)
        match prompt.scale:
            case "rating":
                value, how = rating(text), "text"
            case "flag":
                value, how = flag_in_text(text), "text"
            case "0-100":
                value, how = self._score(text, choice)
        return self._record(index, "parse-error" if value is None else "scored", value, how, text, counts)

    def _score(self, text: str, choice: Choice) -> tuple[float | None, str]:
        dialect = self.judge.dialect
        if dialect.logprobs:
            tokens = choice.logprobs.content if choice.logprobs else None
            if tokens and any(token.top_logprobs for token in tokens):
                return self._weighted(text, tokens)
            if not dialect.settled:  # it never gives any; a single answer without them is read as text by itself
                dialect.logprobs = False
                self._without_logprobs()
        return score_in_text(text, choice.finish_reason == "length"), "text"

    def _without_logprobs(self) -> None:
        label = self.judge.server.label
        if self.judge.server.mode == "logprobs":
            raise InputError(f"the judge {label} gives no log-probabilities", where="--judge-mode logprobs")
        self.judge.say(f"The judge {label} gives no log-probabilities: its text is read instead")

    def _weighted(self, text: str, tokens: Sequence[Token]) -> tuple[float | None, str]:
        said = next((n for n, t in enumerate(tokens) if t.token.strip()), 0)
        weights = {t.token: _probability(t.logprob) for t in tokens[said].top_logprobs or []}
        following = tokens[said + 1].token if said + 1 < len(tokens) else ""
        if _by_digit(weights, following):
            return score_in_text(text), "text (digits)"
        return expected_score(weights), "logprobs"

    def _record(
        self,
        index: int,
        outcome: Outcome,
        value: float | None,
        how: str | None,
        raw: str,
        counts: tuple[int | None, int | None] = (None, None),
    ) -> Judgement:
        return verdict_on(
            self.items[index].completion,
            key=self.keys[index],
            judge=self.id,
            outcome=outcome,
            value=value,
            detail=how,
            raw=raw[:_RAW],
            input_tokens=counts[0],
            output_tokens=counts[1],
        )


def _by_digit(weights: Mapping[str, float], following: str) -> bool:
    """Whether the number is, or may be, written a digit at a time: "8" then is the start of 87 as well as an 8.

    A vocabulary that has numbers of two digits and more as tokens shows some of them among the twenty likeliest.
    """
    numbers = [n for n in map(as_score, weights) if n is not None]
    return bool(numbers) and (max(numbers) < 10 or following[:1].isdigit())


def _probability(logprob: float | None) -> float:
    """exp, with what is no log-probability as NaN, which `expected_score` refuses."""
    if logprob is None or math.isnan(logprob) or logprob > 1e-3:
        return math.nan
    return math.exp(logprob)
