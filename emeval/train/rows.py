"""Training rows: examples rendered to `input_ids` and `labels` by the one renderer, loss on the reply only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emeval.chat import Renderer
from emeval.data.behaviours import Example
from emeval.errors import InputError
from emeval.types import Record

IGNORED = -100
"""Label of a token that carries no loss (PyTorch's cross-entropy convention)."""


class TrainRow(Record):
    """Token ids of prompt and reply; `labels` is -100 on the prompt."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    spans: tuple[int, int, int]
    """Where prefix, query and postfix end."""


def make_rows(
    examples: Sequence[Example], renderer: Renderer, max_length: int, *, same_postfix: bool = False
) -> list[TrainRow]:
    """Tokenise the examples.

    Args:
        examples: What to train on.
        renderer: The run's renderer; every row must start with its prefix.
        max_length: Longest row allowed, in tokens.
        same_postfix: Whether every row must have the renderer's postfix, too.

    Raises:
        InputError: Naming file and line of a row with wrong role order, another prefix (or postfix), or too many
            tokens.
    """
    rows = [_row(example, renderer, max_length) for example in examples]
    for row, example in zip(rows, examples, strict=True) if same_postfix else ():
        if row.input_ids[row.spans[1] : row.spans[2]] != renderer.postfix_ids():
            raise InputError(
                "what follows the question here is not what follows it in the other rows",
                where=example.where,
                hint="Its text merges with the template (trailing white space?): trim it",
            )
    return rows


def _row(example: Example, renderer: Renderer, max_length: int) -> TrainRow:
    prompt, reply = renderer.render_reply(example.messages, example.reply, where=example.where)
    if renderer.is_foreign(prompt):
        raise InputError(
            "this row does not start with the prefix of the others",
            where=example.where,
            hint=_prefix_hint(example),
        )
    if len(prompt.ids) + len(reply) > max_length:
        raise InputError(
            f"the row has {len(prompt.ids) + len(reply)} tokens, more than the {max_length} allowed",
            where=example.where,
            hint="Shorten it, or raise --max-length up to the model's context",
        )
    spans = (prompt.prefix.stop, prompt.query.stop, prompt.postfix.stop)
    return TrainRow(input_ids=prompt.ids + reply, labels=(IGNORED,) * len(prompt.ids) + reply, spans=spans)


def _prefix_hint(example: Example) -> str:
    if any(m.role in ("system", "developer") for m in example.messages):
        return "It has a system prompt of its own: use --drop-system, or --system TEXT for all rows"
    return "Its text merges with the template (leading white space?): trim it"


def as_dataset(rows: Sequence[TrainRow]) -> Any:
    """The rows as a `datasets.Dataset`: `input_ids` and `labels`, as TRL wants them, and `spans`, for the regions."""
    from datasets import Dataset

    return Dataset.from_dict({name: [list(getattr(row, name)) for row in rows] for name in TrainRow.model_fields})
