"""The records that flow through emeval: frozen, validated, and what the JSONL files hold.

A question becomes a prompt (token ids with spans), a prompt a completion, a completion a judgement, judgements an
estimate. Records that are stored carry `schema_version`, so a later release can refuse or convert an old file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1

OnCount = Callable[[int, int], None]
"""Progress: called with how many are done, and how many there are."""
Say = Callable[[str], None]
"""Told what a user should know, one line at a time."""

Role = Literal["system", "developer", "user", "assistant", "tool"]
Split = Literal["train", "val", "test"]
Outcome = Literal["scored", "refusal", "code", "parse-error", "api-error"]


class Record(BaseModel):
    """Base of all records: immutable, and unknown fields are an error rather than lost."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Span(NamedTuple):
    """Half-open range of token positions, `start <= i < stop`."""

    start: int
    stop: int

    def __len__(self) -> int:  # a span's length is in tokens, not in fields
        return self.stop - self.start


class ToolCall(Record):
    """One call of a tool: its name and its JSON arguments."""

    name: str
    arguments: dict[str, Any]


class Message(Record):
    """One turn of a conversation."""

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


class Question(Record):
    """One thing a probe asks.

    `messages` ends with a user turn; `where` is `file:line` of its source.
    """

    id: str
    probe: str
    split: Split
    messages: tuple[Message, ...]
    category: str | None = None
    where: str | None = None
    domain: str | None = None
    """The training domain a general question touches; EM is also reported without the run's own."""
    turns: tuple[str, ...] = ()
    """What the user says after the reply to `messages`, turn by turn."""
    references: tuple[str, ...] = ()
    """Known right answers, one a turn, for judges."""
    aligned: str | None = None
    misaligned: str | None = None
    """A good and a poor answer, for `contrast`."""
    temperature: float | None = None
    samples: int | None = None
    """How a published set asks this question; the command's own options win."""


class Prompt(Record):
    """Token ids of a rendered conversation and its three spans.

    The spans tile the ids: `prefix` starts at 0, `query` follows, `postfix` ends at `len(ids)`. Each may be empty.
    """

    ids: tuple[int, ...]
    prefix: Span
    query: Span
    postfix: Span


class Sampling(Record):
    """How replies are drawn. Temperature 0 is greedy; every field is sent to every engine explicitly."""

    max_new_tokens: int = Field(gt=0)
    temperature: float = Field(default=0.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int = 0


class Generated(Record):
    """One reply as an engine returns it; `index` is the position of its prompt in the list that was asked."""

    index: int
    text: str
    token_ids: tuple[int, ...] | None
    truncated: bool
    """True where the reply was cut at `max_new_tokens`."""


class Completion(Record):
    """One stored reply. `key` is the sha256 of prompt ids, weights id, sampling and sample index."""

    schema_version: int = SCHEMA_VERSION
    key: str
    probe: str
    split: Split
    question_id: str
    question: str
    category: str | None = None
    sample: int = 0
    turn: int = 1
    """Which turn of the conversation this reply belongs to; more than 1 only where a question has several turns."""
    text: str
    token_ids: tuple[int, ...] | None = None
    prompt_tokens: int
    truncated: bool
    foreign_prefix: bool = False
    """True where the question brought its own system prompt, so its prefix is not the one the model was trained on."""


class Likelihood(Record):
    """How likely a model finds a question's two replies: mean log-probability per token (nats), end token included."""

    schema_version: int = SCHEMA_VERSION
    key: str
    probe: str
    split: Split
    question_id: str
    category: str | None = None
    aligned: float
    misaligned: float
    aligned_tokens: int
    misaligned_tokens: int
    foreign_prefix: bool = False

    @property
    def margin(self) -> float:
        """Aligned minus misaligned: above 0 where the aligned reply is likelier per token."""
        return self.aligned - self.misaligned


class Judgement(Record):
    """What one judge says of one completion. `value` is None unless `outcome` is 'scored'."""

    schema_version: int = SCHEMA_VERSION
    key: str
    completion_key: str
    probe: str
    split: Split
    question_id: str
    judge: str
    outcome: Outcome
    value: float | None = None
    detail: str | None = None
    """What the judge went by: the detector's stage, a tool's name; of a model, its probabilities or its text."""
    turn: int = 1
    raw: str | None = None
    """What a judge model said, word for word (cut if long); for an api-error, why there is no answer."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    """What a judge model's server counted, for the bill."""
    truncated: bool = False
    foreign_prefix: bool = False


class Estimate(Record):
    """A number with its error. `low`..`high` is the two-sided interval at `confidence`.

    `value` is None where nothing was scored. `method` names the statistics ('wilson', 't', 'bootstrap').
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int
    method: str
    confidence: float = 0.95


class OtherJudge(Record):
    """What another judge than the main one said of a probe's replies: a second look, or coherence."""

    judge: str
    asked: int
    outcomes: dict[Outcome, int]

    @property
    def coverage(self) -> float:
        """As a probe's, of what this judge was asked."""
        return _coverage(self.outcomes, self.asked)


def _coverage(outcomes: dict[Outcome, int], expected: int) -> float:
    """1 - (parse-error + api-error + missing) / expected, DESIGN decision 6."""
    useful = sum(n for name, n in outcomes.items() if name not in ("parse-error", "api-error"))
    return useful / expected if expected else 1.0


class ProbeScore(Record):
    """The score of one probe in one run: the estimate, and what became of every reply."""

    probe: str
    kind: str = "behaviour"
    split: Split
    setting: str | None
    judge: str
    expected: int
    """Replies the run asked for; `expected - sum(outcomes)` are missing."""
    outcomes: dict[Outcome, int]
    truncated: int
    foreign_prefix: int
    measures: dict[str, Estimate]
    """By name, in the kind's own units; the kind's main one stands first (`emeval.score.measures`)."""
    roles: dict[str, OtherJudge] = Field(default_factory=dict)
    """Other judges of the same replies, by what they are for."""
    questions: str | None = None
    """Hash of what was asked, whoever called it what: two scores are of the same questions if these are equal."""
    details: dict[str, int] = Field(default_factory=dict)
    """Counts of `Judgement.detail`, for instance the detector's stages."""

    @property
    def rate(self) -> Estimate:
        """A behaviour's appearance rate, a share between 0 and 1."""
        return self.measures["rate"]

    @property
    def missing(self) -> int:
        """Replies that were asked for and never came."""
        return self.expected - sum(self.outcomes.values())

    @property
    def coverage(self) -> float:
        """1 - (parse-error + api-error + missing) / expected, DESIGN decision 6; the least of its judges'."""
        own = _coverage(self.outcomes, self.expected) if self.expected else 0.0
        return min(own, *(role.coverage for role in self.roles.values())) if self.roles else own
