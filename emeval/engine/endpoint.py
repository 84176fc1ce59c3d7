"""An engine that asks any OpenAI-compatible server, and the client half of the vLLM engine.

The connection is `remote.py`'s. What is added here: every sampling field sent with every request, and a strict account
of prompts that got no reply.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from pydantic import SecretStr

from emeval.engine import Pair, Request
from emeval.engine.remote import Remote, Session
from emeval.engine.wire import chat_messages, read_logprobs, read_reply, sampling_fields, vllm_fields
from emeval.errors import IncompleteError, InputError
from emeval.types import Generated, Sampling

if TYPE_CHECKING:
    import openai

T = TypeVar("T")


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
        self._remote = Remote(
            url,
            route="completions" if api == "completions" else "chat/completions",
            key_env=key_env,
            key=key,
            concurrency=concurrency,
            max_retries=max_retries,
            timeout=timeout,
        )
        self.url = self._remote.url
        self.model = model
        self.token_prompts = api == "completions"
        self._decode = decode
        self._stop_token_ids = list(stop_token_ids)
        self._system = system
        self._vllm_fields = vllm_fields

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
        session = _Generation(self, requests, sampling)
        yield from self._remote.ask_all(session, todo)
        session.check(len(todo), "prompts", self.url)

    def reply_logprobs(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, tuple[float, ...]]]:
        """See `Engine.reply_logprobs`: vLLM's prompt log-probabilities, of a prompt that holds the reply.

        Raises:
            InputError: If the server renders its own template, or gives no prompt log-probabilities.
            IncompleteError: After all others, if a pair got no answer.
        """
        if not self.token_prompts:
            what = "likelihoods need a server that takes token ids"
            raise InputError(what, where=self.url, hint="Leave contrast out")
        session = _Likelihood(self, pairs)
        yield from self._remote.ask_all(session, range(len(pairs)))
        session.check(len(pairs), "pairs", self.url)

    def close(self) -> None:
        """Nothing is held between calls."""

    async def meet(self, client: openai.AsyncOpenAI) -> None:
        """Learn the model's name, and whether the server is vLLM."""
        self.model, models = await self._remote.first_contact(client, self.model)
        if self._vllm_fields is None:
            self._vllm_fields = any(getattr(model, "owned_by", None) == "vllm" for model in models)

    async def reply(self, client: openai.AsyncOpenAI, request: Request, sampling: Sampling, index: int) -> Generated:
        """Ask for one reply."""
        api = cast(Any, client)  # the fields are built at run time, which the client's overloads cannot follow
        fields = {"model": self.model, **sampling_fields(sampling, request.number)}
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


class _Pass(Session[T]):
    """One pass over prompts, every one accounted for."""

    def __init__(self, engine: EndpointEngine) -> None:
        self._engine = engine
        self.model = engine.model
        self.replies = 0
        self.reason = ""

    async def begin(self, client: openai.AsyncOpenAI) -> None:
        await self._engine.meet(client)
        self.model = self._engine.model

    def failed(self, index: int, reason: str) -> Iterator[T]:
        self.reason = self.reason or reason
        yield from ()

    def check(self, asked: int, what: str, where: str) -> None:
        """IncompleteError if fewer came than were asked for."""
        if self.replies < asked:
            raise IncompleteError(
                f"{asked - self.replies} of {asked} {what} got no reply; the first failure: {self.reason}",
                where=where,
                hint="What was answered is kept: run it again to ask for the rest",
            )


class _Generation(_Pass[Generated]):
    def __init__(self, engine: EndpointEngine, requests: Sequence[Request], sampling: Sampling) -> None:
        super().__init__(engine)
        self._requests, self._sampling = requests, sampling

    async def ask(self, client: openai.AsyncOpenAI, index: int) -> Generated:
        reply = await self._engine.reply(client, self._requests[index], self._sampling, index)
        self.replies += 1
        return reply


class _Likelihood(_Pass[tuple[int, tuple[float, ...]]]):
    def __init__(self, engine: EndpointEngine, pairs: Sequence[Pair]) -> None:
        super().__init__(engine)
        self._pairs = pairs

    async def ask(self, client: openai.AsyncOpenAI, index: int) -> tuple[int, tuple[float, ...]]:
        prompt, reply = self._pairs[index]
        response = await cast(Any, client).completions.create(
            model=self.model,
            prompt=[*prompt, *reply],
            max_tokens=1,
            temperature=0.0,
            extra_body={"prompt_logprobs": 0},
        )
        found = read_logprobs(response, reply)
        self.replies += 1
        return index, found
