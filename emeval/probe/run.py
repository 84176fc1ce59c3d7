"""Asking: from questions to stored completions. What is stored already is never asked again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from emeval.chat import Renderer
from emeval.engine import Engine
from emeval.store import Jsonl, sha256_of
from emeval.types import Completion, Message, Prompt, Question, Sampling, Span


@dataclass(frozen=True)
class Ask:
    """One question to be put once, with the key its completion is stored under."""

    question: Question
    prompt: Prompt
    sample: int
    key: str
    foreign_prefix: bool

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation."""
        return self.question.messages


def plan_asks(
    questions: Sequence[Question], renderer: Renderer | None, weights_id: str, sampling: Sampling, samples: int
) -> list[Ask]:
    """Every question, rendered, `samples` times each. Without a renderer the server renders: the messages are the key.

    Raises:
        InputError: Naming the question that cannot be rendered.
    """
    asks = []
    drawn = sampling.model_dump_json()
    for question in questions:
        prompt = renderer.render(question.messages, where=question.where) if renderer else _UNSEEN
        foreign = renderer.is_foreign(prompt) if renderer else question.messages[0].role != "user"
        asked = repr(prompt.ids) if renderer else repr([m.model_dump() for m in question.messages])
        for sample in range(samples):
            asks.append(Ask(question, prompt, sample, sha256_of(asked, weights_id, drawn, str(sample)), foreign))
    return asks


_UNSEEN = Prompt(ids=(), prefix=Span(0, 0), query=Span(0, 0), postfix=Span(0, 0))
"""The prompt of a server that renders its own template."""


def missing(asks: Sequence[Ask], stored: dict[tuple[str, str], Completion]) -> list[int]:
    """Indexes of the asks that have no completion yet."""
    return [i for i, ask in enumerate(asks) if (ask.question.probe, ask.key) not in stored]


def stored_completions(file: Jsonl[Completion]) -> dict[tuple[str, str], Completion]:
    """All stored completions by probe and key; the first of a key counts."""
    found: dict[tuple[str, str], Completion] = {}
    for completion in file.read():
        found.setdefault((completion.probe, completion.key), completion)
    return found


def ask_all(
    asks: Sequence[Ask],
    engine: Engine,
    sampling: Sampling,
    file: Jsonl[Completion],
    stored: dict[tuple[str, str], Completion],
    on_reply: Callable[[], None] = lambda: None,
) -> None:
    """Put every ask that is not in `stored`, append each reply to `file` and add it to `stored`.

    Raises:
        IncompleteError: If some replies could not be had; the others are stored.
    """
    for completion in _replies(asks, engine, sampling, stored):
        file.append(completion)
        stored[completion.probe, completion.key] = completion
        on_reply()


def _replies(
    asks: Sequence[Ask], engine: Engine, sampling: Sampling, stored: dict[tuple[str, str], Completion]
) -> Iterator[Completion]:
    done = set(range(len(asks))) - set(missing(asks, stored))
    for reply in engine.generate(asks, sampling, skip=done):
        ask = asks[reply.index]
        if (ask.question.probe, ask.key) in stored:
            continue
        yield Completion(
            key=ask.key,
            probe=ask.question.probe,
            split=ask.question.split,
            question_id=ask.question.id,
            question=ask.question.messages[-1].content,
            category=ask.question.category,
            sample=ask.sample,
            text=reply.text,
            token_ids=reply.token_ids,
            prompt_tokens=len(ask.prompt.ids),
            truncated=reply.truncated,
            foreign_prefix=ask.foreign_prefix,
        )
