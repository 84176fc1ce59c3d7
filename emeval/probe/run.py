"""Asking: from questions to stored completions. What is stored already is never asked again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from emeval.chat import Renderer
from emeval.engine import Engine
from emeval.store import Jsonl, sha256_of
from emeval.types import Completion, Message, Prompt, Question, Sampling, Span


class Changes(Protocol):
    """What an intervention may do to a question: see `probe.plan.Arm`."""

    @property
    def reworded(self) -> Callable[[Question, int], tuple[Message, ...]] | None:  # noqa: D102
        ...

    @property
    def reencoded(self) -> Callable[[Prompt, Question, int], Prompt] | None:  # noqa: D102
        ...


@dataclass(frozen=True)
class Ask:
    """One question to be put once, with the key its completion is stored under."""

    question: Question
    prompt: Prompt
    sample: int
    key: str
    foreign_prefix: bool
    sampling: Sampling
    number: int
    """Position in its probe: what a server's random seed for it is made of."""
    turn: int = 1
    reworded: tuple[Message, ...] | None = None
    """What is asked in the question's place."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation, as it is put to the model."""
        return self.question.messages if self.reworded is None else self.reworded


def plan_asks(
    questions: Sequence[Question],
    renderer: Renderer | None,
    weights_id: str,
    drawn: Callable[[Question], tuple[Sampling, int]],
    pairs: bool = False,
    arm: Changes | None = None,
) -> list[Ask]:
    """Every question, rendered, as often as `drawn` says: how its replies are sampled, and how many of them.

    With an `arm` each is changed first, each time otherwise.

    Raises:
        InputError: Naming the question that cannot be rendered.
    """
    asks: list[Ask] = []
    for question in questions:
        sampling, samples = drawn(question)
        for sample in range(samples):
            asks.append(_ask(question, renderer, weights_id, sampling, sample, len(asks), pair=pairs, arm=arm))
    return asks


def follow_ups(
    asks: Sequence[Ask],
    stored: Mapping[tuple[str, str], Completion],
    renderer: Renderer | None,
    weights_id: str,
    arm: Changes | None = None,
) -> list[Ask]:
    """The next turns of those conversations that have one and whose last reply is in `stored`."""
    later = []
    for ask in asks:
        reply = stored.get((ask.question.probe, ask.key))
        if reply is None or not ask.question.turns:
            continue
        said = (Message(role="assistant", content=reply.text), Message(role="user", content=ask.question.turns[0]))
        question = ask.question.model_copy(
            update={"messages": ask.question.messages + said, "turns": ask.question.turns[1:]}
        )
        turn = ask.turn + 1
        later.append(_ask(question, renderer, weights_id, ask.sampling, ask.sample, ask.number, turn, arm=arm))
    return later


def _ask(
    question: Question,
    renderer: Renderer | None,
    weights_id: str,
    sampling: Sampling,
    sample: int,
    number: int,
    turn: int = 1,
    pair: bool = False,
    arm: Changes | None = None,
) -> Ask:
    """One question, rendered. Without a renderer the server renders: the messages are the key.

    Of a `pair` the key holds the two replies that are read as well.
    """
    reworded = arm.reworded(question, sample) if arm and arm.reworded else None
    messages = question.messages if reworded is None else reworded
    prompt = renderer.render(messages, where=question.where) if renderer else _UNSEEN
    foreign = renderer.is_foreign(prompt) if renderer else messages[0].role != "user"
    if arm and arm.reencoded and not foreign:
        prompt = arm.reencoded(prompt, question, sample)
    asked = repr(prompt.ids) if renderer else repr([m.model_dump() for m in messages])
    read = (question.aligned or "", question.misaligned or "") if pair else ()
    key = sha256_of(asked, weights_id, sampling.model_dump_json(), str(sample), *read)
    return Ask(question, prompt, sample, key, foreign, sampling, number, turn, reworded)


_UNSEEN = Prompt(ids=(), prefix=Span(0, 0), query=Span(0, 0), postfix=Span(0, 0))
"""The prompt of a server that renders its own template."""


def missing(asks: Sequence[Ask], stored: Mapping[tuple[str, str], object]) -> list[int]:
    """Indexes of the asks that have no completion, or no likelihood, yet."""
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
    file: Jsonl[Completion],
    stored: dict[tuple[str, str], Completion],
    on_reply: Callable[[], None] = lambda: None,
) -> None:
    """Put every ask that is not in `stored`, append each reply to `file` and add it to `stored`.

    All asks draw their replies the same way.

    Raises:
        IncompleteError: If some replies could not be had; the others are stored.
    """
    for completion in _replies(asks, engine, stored):
        file.append(completion)
        stored[completion.probe, completion.key] = completion
        on_reply()


def _replies(asks: Sequence[Ask], engine: Engine, stored: dict[tuple[str, str], Completion]) -> Iterator[Completion]:
    done = set(range(len(asks))) - set(missing(asks, stored))
    for reply in engine.generate(asks, asks[0].sampling, skip=done):
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
            turn=ask.turn,
            text=reply.text,
            token_ids=reply.token_ids,
            prompt_tokens=len(ask.prompt.ids),
            truncated=reply.truncated,
            foreign_prefix=ask.foreign_prefix,
        )
