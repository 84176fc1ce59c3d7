"""What judging costs: prices from a data file, an estimate before, the bill after."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from pydantic import Field

from emeval.data.files import yaml_record
from emeval.data.root import DataRoot
from emeval.types import Judgement, Record

_CHARACTERS_PER_TOKEN = 4.0
"""Of English, in the vocabularies of today; good to about a fifth, and called an estimate."""


class Price(Record):
    """Dollars per million tokens."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    reasoning: bool = False
    """Whether it thinks first, at the price of its output."""

    def of(self, input_tokens: float, output_tokens: float) -> float:
        """Dollars."""
        return (self.input * input_tokens + self.output * output_tokens) / 1e6


class Prices(Record):
    """The price file."""

    as_of: str
    models: dict[str, Price]

    def of(self, model: str) -> Price | None:
        """The price of a model: the longest listed name that its own starts with, a vendor's `name/` aside."""
        name = model.rpartition("/")[2]
        return self.models[max(known, key=len)] if (known := [n for n in self.models if _is(name, n)]) else None


def _is(name: str, listed: str) -> bool:
    # A date or a tag may follow. `gpt-5-pro` is another model than `gpt-5`, at another price.
    return name == listed or re.fullmatch(rf"{re.escape(listed)}(-\d[\d-]*|-latest|[:@].*)", name) is not None


class Bill(Record):
    """Calls and tokens, made or expected, and what they cost; `dollars` is None where no price is known.

    Where a server tells no counts they are estimated from the texts.
    """

    calls: int
    input_tokens: int
    output_tokens: int
    dollars: float | None


def load_prices(root: DataRoot) -> Prices:
    """The prices, the user's own file first."""
    return yaml_record(Prices, root.find("prompts/judges", "prices", ".yaml", "price file"))


def bill(judgements: Iterable[Judgement], price: Price | None) -> Bill:
    """What these judgements cost."""
    # An api-error with counts was answered, and paid, though the answer was of no use.
    asked = [j for j in judgements if j.outcome != "api-error" or j.output_tokens is not None]
    inputs, outputs = (sum(getattr(j, f"{way}_tokens") or 0 for j in asked) for way in ("input", "output"))
    return Bill(
        calls=len(asked),
        input_tokens=inputs,
        output_tokens=outputs,
        dollars=price.of(inputs, outputs) if price else None,
    )


def estimate(messages: Iterable[list[dict[str, str]]], output_tokens: int, price: Price | None) -> Bill:
    """What asking these would cost; `output_tokens` is what all answers together may take."""
    sizes = [tokens_of(m) for m in messages]
    return Bill(
        calls=len(sizes),
        input_tokens=sum(sizes),
        output_tokens=output_tokens,
        dollars=price.of(sum(sizes), output_tokens) if price else None,
    )


def tokens_of(messages: Iterable[Mapping[str, str]]) -> int:
    """Tokens of a conversation, estimated from its length."""
    return sum(math.ceil(len(m["content"]) / _CHARACTERS_PER_TOKEN) + 4 for m in messages)
