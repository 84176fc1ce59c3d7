"""A connection to an OpenAI-compatible server: its key, retries, what its errors mean, how many requests at once.

Engines and judges are both clients of such servers; this is what they share. Retries are the OpenAI client's own (it
honours Retry-After). Every job that gets no answer is accounted for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import SecretStr

from emeval.engine.pump import Emit, run_all, stream
from emeval.engine.wire import base_url, is_loopback
from emeval.errors import EmevalError, InputError

if TYPE_CHECKING:
    import openai

T = TypeVar("T")

_FIRST_CONTACT = 60.0
"""Seconds the server has to list its models; a generation may take far longer."""
_REASON = 200
"""Characters kept of a server's own error text."""


class Remote:
    """One server, and how to speak to it.

    Args:
        url: The server, with or without `/v1`; http or https.
        route: What is asked of it, for messages: `completions`, `chat/completions`.
        key_env: Environment variable that holds the key. A server without keys needs none.
        key: A key that emeval made itself, for a server it started; wins over `key_env`.
        concurrency: Requests in flight.
        max_retries: Retries of one request, by the OpenAI client.
        timeout: Seconds one request may take.

    Raises:
        InputError: If `url` is not a plain http(s) address.
    """

    def __init__(
        self,
        url: str,
        *,
        route: str,
        key_env: str = "OPENAI_API_KEY",
        key: SecretStr | None = None,
        concurrency: int = 16,
        max_retries: int = 6,
        timeout: float = 600.0,
    ) -> None:
        self.url = base_url(url)
        self.route = route
        self.concurrency = concurrency
        self._key_env, self._key = key_env, key
        self._max_retries, self._timeout = max_retries, timeout

    def ask_all(self, session: Session[T], todo: Sequence[int]) -> Iterator[T]:
        """Answers to the jobs numbered in `todo`, as they come; `session` says what a job is.

        Raises:
            InputError: At once, if the server refuses the key or does not know the model.
            EmevalError: At once, if the server cannot be reached.
        """

        async def produce(emit: Emit[T]) -> None:
            await self._ask_all(session, todo, emit)

        if todo:
            yield from stream(produce, room=2 * self.concurrency)

    async def _ask_all(self, session: Session[T], todo: Sequence[int], emit: Emit[T]) -> None:
        async with self._client() as client:
            await session.begin(client)
            tally = _Tally(patience=max(3, self.concurrency), replies=session.known)
            jobs = iter(todo)

            async def work() -> None:
                for index in jobs:
                    if tally.hopeless() or session.enough(index):
                        return
                    try:
                        answer = await session.ask(client, index)
                    except Exception as error:
                        reason = self._give_up_or_explain(error, tally, session.model)
                        tally.failed(connection=_is_connection(error))
                        for item in session.failed(index, reason):
                            await emit(item)
                    else:
                        tally.replied()
                        await emit(answer)

            await run_all(work() for _ in range(min(self.concurrency, len(todo))))

    def plain_client(self) -> openai.OpenAI:
        """A client for one call after the other, with the same key and patience."""
        import openai

        http = openai.DefaultHttpxClient(trust_env=not is_loopback(self.url))
        return openai.OpenAI(
            base_url=self.url,
            api_key=self.secret() or "none",
            max_retries=self._max_retries,
            timeout=self._timeout,
            http_client=http,
        )

    def failure(self, error: Exception, model: str | None = None) -> EmevalError:
        """An error of the client as one line of ours."""
        hint = "Run the same command again"
        return self._refused(error, model) or EmevalError(self._explain(error), where=self.url, hint=hint)

    def _client(self) -> openai.AsyncOpenAI:
        import httpx2
        import openai

        # aiohttp takes half the CPU a call that the default transport takes (benchmarks/judging.py). A proxy from the
        # environment must not get between us and a server on this machine.
        limits = httpx2.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        http = openai.DefaultAioHttpClient(trust_env=not is_loopback(self.url), limits=limits)
        return openai.AsyncOpenAI(
            base_url=self.url,
            api_key=self.secret() or "none",
            max_retries=self._max_retries,
            timeout=self._timeout,
            http_client=http,
        )

    def secret(self) -> str | None:
        """The key; InputError for one that cannot be."""
        key = (self._key.get_secret_value() if self._key else os.environ.get(self._key_env, "")).strip()
        if not (key.isascii() and key.isprintable()):  # the HTTP library would quote it in its own error
            raise InputError(f"the key in {self._key_env} holds characters that no key has", hint="Set it again")
        return key or None

    async def first_contact(self, client: openai.AsyncOpenAI, named: str | None) -> tuple[str, list[Any]]:
        """The model's name and the list it stands in, after one request that fails fast where the server is absent or
        refuses the key. `named` is the model to ask; None takes the first the server lists."""
        import openai

        once = client.with_options(max_retries=0, timeout=_FIRST_CONTACT)
        tolerated = (403, 404) if named else (404,)  # a key may be valid without the right to list models
        models: list[Any] = []
        reason = "it lists none"
        for attempt in (once,) if named else (once, client):
            try:
                models = list((await attempt.models.list()).data)
                break
            except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
                if _status(error) not in tolerated and (refused := self._refused(error, named)):
                    raise refused from None
                reason = self._explain(error)
        # Many gateways list nothing: a model that was named is asked all the same.
        if name := named or next((model.id for model in models), None):
            return name, models
        raise InputError(f"cannot tell which model to ask ({reason})", where=self.url, hint="Name the model")

    def _give_up_or_explain(self, error: Exception, tally: _Tally, model: str | None) -> str:
        """The reason to count against one job; raises where no other job could fare better."""
        import openai

        if not isinstance(error, (openai.OpenAIError, ValueError)):
            raise error
        if tally.replies == 0 and (refused := self._refused(error, model)):
            raise refused from None
        return self._explain(error)

    def _refused(self, error: Exception, model: str | None) -> EmevalError | None:
        """The error to stop with if the server is absent, or refuses the key or the model."""
        status = _status(error)
        if status in (401, 403):
            return InputError(
                f"the server refused the key (HTTP {status})",
                where=self.url,
                hint=f"Set {self._key_env} to a valid key",
            )
        if status == 404:
            what = f"the server has no model '{model}' or no /{self.route} (HTTP 404)"
            return InputError(what, where=self.url, hint="GET /v1/models lists what it serves")
        if _is_connection(error):
            what = f"cannot reach the server ({self._explain(error)})"
            return EmevalError(what, where=self.url, hint="Is it running, and is the address right?")
        return None

    def _explain(self, error: BaseException) -> str:
        """One short printable line about an error, without the key."""
        cause = error.__cause__
        text = f"{type(error).__name__}: {error}" + (f" {cause}" if cause and _is_connection(error) else "")
        if secret := self.secret():
            text = text.replace(secret, "***")
        line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        return line[:_REASON].rstrip(". ")


class Session(Generic[T]):
    """What one pass of jobs asks of a server; engines and judges fill it in."""

    model: str | None = None
    known = 0
    """Answers had from this server before: what it refuses now is then a job's own failure, not the key's."""

    async def begin(self, client: openai.AsyncOpenAI) -> None:
        """Once, before the jobs."""

    async def ask(self, client: openai.AsyncOpenAI, index: int) -> T:
        """One job. An `OpenAIError` or `ValueError` counts against this job alone."""
        raise NotImplementedError

    def failed(self, index: int, reason: str) -> Iterator[T]:
        """What to hand on for a job that got no answer, all retries spent."""
        yield from ()

    def enough(self, index: int) -> bool:
        """Whether this job, and any after it, shall not be begun."""
        return False


class _Tally:
    """How many jobs were answered, and whether the server has gone."""

    def __init__(self, patience: int, replies: int) -> None:
        self.replies = replies
        self._patience = patience
        self._lost_in_a_row = 0

    def replied(self) -> None:
        self.replies += 1
        self._lost_in_a_row = 0

    def failed(self, *, connection: bool) -> None:
        self._lost_in_a_row = self._lost_in_a_row + 1 if connection else 0

    def hopeless(self) -> bool:
        """True once so many requests in a row, all retries spent, found no server: the rest would only wait."""
        return self._lost_in_a_row >= self._patience


def _is_connection(error: BaseException) -> bool:
    """Whether no connection could be had; a reply that took too long is another matter."""
    import httpx2
    import openai

    if isinstance(error, openai.APITimeoutError):  # aiohttp's transport calls a refused connection a timeout, too
        return isinstance(error.__cause__, httpx2.ConnectTimeout)
    return isinstance(error, openai.APIConnectionError)


def _status(error: BaseException) -> int | None:
    """The HTTP status of a refusal."""
    import openai

    return error.status_code if isinstance(error, openai.APIStatusError) else None
