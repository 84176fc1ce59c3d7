"""An engine that asks any OpenAI-compatible server, and the client half of the vLLM engine.

Retries are the OpenAI client's own (it honours Retry-After). What is added here: a fixed number of requests in flight,
every sampling field sent with every request, and a strict account of prompts that got no reply.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import SecretStr

from emeval.engine import Request
from emeval.engine.pump import Emit, run_all, stream
from emeval.engine.wire import base_url, chat_messages, is_loopback, read_reply, sampling_fields, vllm_fields
from emeval.errors import EmevalError, IncompleteError, InputError
from emeval.types import Generated, Sampling

if TYPE_CHECKING:
    import openai

_FIRST_CONTACT = 60.0
"""Seconds the server has to list its models; a generation may take far longer."""
_REASON = 200
"""Characters kept of a server's own error text."""


class EndpointEngine:
    """A model behind an OpenAI-compatible API.

    Args:
        url: The server, with or without `/v1`; http or https.
        model: Its name there; None takes the first the server lists.
        key_env: Environment variable that holds the key. A server without keys needs none.
        key: A key that emeval made itself, for a server it started; wins over `key_env`.
        api: "completions" sends our token ids, "chat" sends messages and leaves the template to the server.
        concurrency: Requests in flight.
        decode: Turns returned token ids into the reply's text; without it the server's text is taken.
        stop_token_ids: Further ids that end a reply (sent among vLLM's fields).
        system: For "chat": system text for conversations that bring none.
        vllm_fields: Send vLLM's own sampling fields too, and ask for token ids. None: if the server says it is vLLM.
        max_retries: Retries of one request, by the OpenAI client.
        timeout: Seconds one request may take.

    Raises:
        InputError: If `url` is not a plain http(s) address.
    """

    name = "endpoint"

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        key_env: str = "OPENAI_API_KEY",
        key: SecretStr | None = None,
        api: Literal["completions", "chat"] = "completions",
        concurrency: int = 16,
        decode: Callable[[Sequence[int]], str] | None = None,
        stop_token_ids: Sequence[int] = (),
        system: str | None = None,
        vllm_fields: bool | None = None,
        max_retries: int = 6,
        timeout: float = 600.0,
    ) -> None:
        self.url = base_url(url)
        self.model = model
        self.token_prompts = api == "completions"
        self._key_env, self._key = key_env, key
        self._concurrency = concurrency
        self._decode = decode
        self._stop_token_ids = list(stop_token_ids)
        self._system = system
        self._vllm_fields = vllm_fields
        self._max_retries, self._timeout = max_retries, timeout

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, skip: Collection[int] = ()
    ) -> Iterator[Generated]:
        """Yield replies as they finish; see `emeval.engine.Engine`.

        `token_ids` is filled where the server returns ids, without the token that ended the reply.

        Raises:
            InputError: At once, if the server refuses the key or does not know the model.
            EmevalError: At once, if the server cannot be reached.
            IncompleteError: After all other replies, if a prompt got none.
        """
        stored = set(skip)
        todo = [index for index in range(len(requests)) if index not in stored]

        async def produce(emit: Emit[Generated]) -> None:
            await self._ask_all(requests, todo, sampling, emit)

        if todo:
            yield from stream(produce, room=2 * self._concurrency)

    def close(self) -> None:
        """Nothing is held between calls."""

    async def _ask_all(
        self, requests: Sequence[Request], todo: list[int], sampling: Sampling, emit: Emit[Generated]
    ) -> None:
        async with self._client() as client:
            self.model = await self._first_contact(client)
            tally = _Tally(patience=max(3, self._concurrency))
            jobs = iter(todo)

            async def work() -> None:
                for index in jobs:
                    if tally.hopeless():
                        return
                    try:
                        reply = await self._ask(client, requests[index], sampling, index)
                    except Exception as error:
                        tally.failed(self._give_up_or_explain(error, tally), connection=_is_connection(error))
                    else:
                        tally.replied()
                        await emit(reply)

            await run_all(work() for _ in range(min(self._concurrency, len(todo))))
        if tally.replies < len(todo):
            raise IncompleteError(
                f"{len(todo) - tally.replies} of {len(todo)} prompts got no reply; the first failure: {tally.reason}",
                where=self.url,
                hint="What was answered is kept: run it again to ask for the rest",
            )

    def _client(self) -> openai.AsyncOpenAI:
        import openai

        # A proxy from the environment must not get between us and a server on this machine.
        http = openai.DefaultAsyncHttpxClient(trust_env=not is_loopback(self.url))
        return openai.AsyncOpenAI(
            base_url=self.url,
            api_key=self._secret() or "none",
            max_retries=self._max_retries,
            timeout=self._timeout,
            http_client=http,
        )

    def _secret(self) -> str | None:
        key = (self._key.get_secret_value() if self._key else os.environ.get(self._key_env, "")).strip()
        if not (key.isascii() and key.isprintable()):  # the HTTP library would quote it in its own error
            raise InputError(f"the key in {self._key_env} holds characters that no key has", hint="Set it again")
        return key or None

    async def _first_contact(self, client: openai.AsyncOpenAI) -> str:
        """The model's name, after one request that fails fast where the server is absent or refuses the key."""
        import openai

        once = client.with_options(max_retries=0, timeout=_FIRST_CONTACT)
        tolerated = (403, 404) if self.model else (404,)  # a key may be valid without the right to list models
        models: list[Any] = []
        reason = "it lists none"
        for attempt in (once,) if self.model else (once, client):
            try:
                models = list((await attempt.models.list()).data)
                break
            except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
                if _status(error) not in tolerated and (refused := self._refused(error)):
                    raise refused from None
                reason = self._explain(error)
        if self._vllm_fields is None:
            self._vllm_fields = any(getattr(model, "owned_by", None) == "vllm" for model in models)
        # Many gateways list nothing: a model that was named is asked all the same.
        if name := self.model or next((model.id for model in models), None):
            return name
        raise InputError(f"cannot tell which model to ask ({reason})", where=self.url, hint="Name the model")

    async def _ask(self, client: openai.AsyncOpenAI, request: Request, sampling: Sampling, index: int) -> Generated:
        api = cast(Any, client)  # the fields are built at run time, which the client's overloads cannot follow
        fields = {"model": self.model, **sampling_fields(sampling, index)}
        if self._vllm_fields:
            fields["extra_body"] = vllm_fields(self._stop_token_ids)
        if self.token_prompts:
            response = await api.completions.create(prompt=list(request.prompt.ids), **fields)
        else:
            messages = chat_messages(request.messages, self._system)
            response = await api.chat.completions.create(messages=messages, **fields)
        reply = read_reply(response, index)
        if self._decode and reply.token_ids is not None:
            return reply.model_copy(update={"text": self._decode(reply.token_ids)})
        return reply

    def _give_up_or_explain(self, error: Exception, tally: _Tally) -> str:
        """The reason to count against one prompt; raises where no other prompt could fare better."""
        import openai

        if not isinstance(error, (openai.OpenAIError, ValueError)):
            raise error
        if tally.replies == 0 and (refused := self._refused(error)):
            raise refused from None
        return self._explain(error)

    def _refused(self, error: Exception) -> EmevalError | None:
        """The error to stop with if the server is absent, or refuses the key or the model."""
        status = _status(error)
        if status in (401, 403):
            return InputError(
                f"the server refused the key (HTTP {status})",
                where=self.url,
                hint=f"Set {self._key_env} to a valid key",
            )
        if status == 404:
            route = "completions" if self.token_prompts else "chat/completions"
            what = f"the server has no model '{self.model}' or no /{route} (HTTP 404)"
            return InputError(what, where=self.url, hint="GET /v1/models lists what it serves")
        if _is_connection(error):
            what = f"cannot reach the server ({self._explain(error)})"
            return EmevalError(what, where=self.url, hint="Is it running, and is the address right?")
        return None

    def _explain(self, error: BaseException) -> str:
        """One short printable line about an error, without the key."""
        cause = error.__cause__
        text = f"{type(error).__name__}: {error}" + (f" {cause}" if cause and _is_connection(error) else "")
        if secret := self._secret():
            text = text.replace(secret, "***")
        line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        return line[:_REASON].rstrip(". ")


class _Tally:
    """How many prompts were answered, why the first one was not, and whether the server has gone."""

    def __init__(self, patience: int) -> None:
        self.replies = 0
        self.reason = ""
        self._patience = patience
        self._lost_in_a_row = 0

    def replied(self) -> None:
        self.replies += 1
        self._lost_in_a_row = 0

    def failed(self, reason: str, *, connection: bool) -> None:
        self.reason = self.reason or reason
        self._lost_in_a_row = self._lost_in_a_row + 1 if connection else 0

    def hopeless(self) -> bool:
        """True once so many requests in a row, all retries spent, found no server: the rest would only wait."""
        return self._lost_in_a_row >= self._patience


def _is_connection(error: BaseException) -> bool:
    """Whether no connection could be had; a reply that took too long is another matter."""
    import openai

    return isinstance(error, openai.APIConnectionError) and not isinstance(error, openai.APITimeoutError)


def _status(error: BaseException) -> int | None:
    """The HTTP status of a refusal."""
    import openai

    return error.status_code if isinstance(error, openai.APIStatusError) else None
