"""What a chat API answers, as far as a judge needs it: checked once, lenient in what does not matter.

The OpenAI client's own types are not used here: building them for twenty log-probabilities takes longer than all else
that is done about an answer (benchmarks/judging.py).
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator


def _count(value: object) -> int | None:
    """A number of tokens, or None for what cannot be one: an estimate takes its place."""
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return int(value)


def _if_it_fits(value: object, validate: ValidatorFunctionWrapHandler) -> Any:
    """The log-probabilities, or None for what is none: the text can be read all the same."""
    try:
        return validate(value)
    except ValidationError:
        return None


_Count = Annotated[int | None, BeforeValidator(_count)]


class Top(BaseModel):
    """A token and its log-probability."""

    token: str = ""
    logprob: float | None = None


class Token(Top):
    """One that was said, with the likeliest in its place."""

    top_logprobs: list[Top] | None = None


class Logprobs(BaseModel):
    """Of what was said, token by token."""

    content: list[Token] | None = None


class Part(BaseModel):
    """A piece of what was said; only text is read."""

    text: str | None = None


class Said(BaseModel):
    """What the model says; some servers hand it on in parts."""

    content: str | list[str | Part] | None = None

    @property
    def text(self) -> str:
        """All of it, as text."""
        if isinstance(self.content, list):
            return "".join(part if isinstance(part, str) else part.text or "" for part in self.content)
        return self.content or ""


class Choice(BaseModel):
    """One of the answers; we ask for one."""

    message: Said
    finish_reason: str | None = None
    logprobs: Annotated[Logprobs | None, WrapValidator(_if_it_fits)] = None


class Usage(BaseModel):
    """Tokens, as the server counted them."""

    prompt_tokens: _Count = None
    completion_tokens: _Count = None


class Answer(BaseModel):
    """An answer of `/chat/completions`."""

    choices: Annotated[list[Choice], BeforeValidator(lambda value: [] if value is None else value)] = Field(
        default_factory=list
    )
    usage: Annotated[Usage, BeforeValidator(lambda value: value if isinstance(value, dict) else {})] = Usage()
    error: Any = None

    @property
    def complaint(self) -> str | None:
        """What the server says in place of an answer, where it does so under HTTP 200."""
        if self.choices or not self.error:
            return None
        told = self.error.get("message") if isinstance(self.error, dict) else None
        return f"the server says: {told or self.error}"


def read_answer(body: str | bytes) -> Answer:
    """An answer from its JSON.

    Raises:
        json.JSONDecodeError, UnicodeDecodeError: No JSON; both are ValueErrors.
        ValueError: Of another shape than the API's.
    """
    try:
        return Answer.model_validate_json(body)
    except ValidationError:
        pass  # half a character in a text is enough for that
    try:
        return Answer.model_validate(_whole(json.loads(body)))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "the answer"
        what = f"the answer is of another shape than the API's ({place}: {problem['msg']})"
        raise ValueError(what) from None
    except RecursionError:
        raise ValueError("the answer is of another shape than the API's (nested too deeply)") from None


def _whole(value: Any) -> Any:
    """The same with the sign for what cannot be shown in place of half characters."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {_whole(key): _whole(item) for key, item in value.items()}
    return value
