"""Engines turn prompts into replies. One method, three implementations, found by name.

An engine gets token ids (`Prompt`), never text, so that the prefix a model was trained on is the prefix it is served.
The one exception is an endpoint that takes only chat messages; it says so with `token_prompts = False`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

from emeval.types import Generated, Message, Prompt, Sampling

ENGINES = {
    "transformers": "emeval.engine.transformers:TransformersEngine",
    "vllm": "emeval.engine.vllm:VllmEngine",
    "endpoint": "emeval.engine.endpoint:EndpointEngine",
}


Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of a reply to it."""


class Request(Protocol):
    """What an engine may look at of a question to be asked."""

    @property
    def prompt(self) -> Prompt:
        """Its token ids."""
        ...

    @property
    def number(self) -> int:
        """Its position in a list that stays the same, whatever else is asked: its random seed is made of it."""
        ...

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation, for servers that render their own template."""
        ...


class Engine(Protocol):
    """One loaded or served model."""

    name: str
    token_prompts: bool
    """Whether replies were generated from our own token ids (False: the server rendered its own template)."""

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, skip: Collection[int] = ()
    ) -> Iterator[Generated]:
        """Yield one reply per request, as they finish, in any order; `Generated.index` says which.

        Args:
            requests: The full list of the run, the same on every resume, so that a plan made from it is the same too.
            sampling: How to draw; `temperature` 0 is greedy whatever the checkpoint's own generation config says.
            skip: Indexes that are already stored. They may be yielded again; the caller drops them.
        """
        ...

    def reply_logprobs(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, tuple[float, ...]]]:
        """Yield, for each pair of prompt ids and reply ids, its index and the log-probability of every reply token.

        Raises:
            InputError: If the engine cannot tell.
        """
        ...

    def close(self) -> None:
        """Free the model; for a server, end its whole process group."""
        ...
