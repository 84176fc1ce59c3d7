"""The renderer: a conversation in, token ids and the three spans of PAPER.md section 1 out.

Training, scoring, patching and perturbing all take their ids from here (DESIGN decision 1), so the prefix that was
regularised is the prefix that is served. Text comes from the tokenizer's own chat template; the spans come from the
ids. To find where template text ends, the same conversation is rendered with other words in the user's place: the
ids that stay are template, the ids that change are content. No template is known by name.

Three choices to know of:

- A token that merges template text with content belongs to the query.
- In a conversation of several turns everything from the first user content to the last one is query, since it
  depends on the conversation.
- Content that spells a special token ("<|im_end|>") becomes that token, as it does in the model's serving stack.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import combinations
from typing import Any, Literal, Protocol

from jinja2 import TemplateError

from emeval.errors import InputError
from emeval.turns import as_dicts, check_order, hermes, with_content
from emeval.types import Message, Prompt, Span, ToolCall

Ids = tuple[int, ...]
ToolFormat = Literal["native", "hermes"]

NO_SYSTEM, NO_PREFIX = "none", "no-prefix"
"""In place of a system prompt: leave the system block out; or leave out all before the user's content, BOS too."""
PINNED_DATE = "26 Jul 2024"
"""The day that templates see as today: the one Llama-3.1's template falls back to."""
_DATE_FORMAT = "%d %b %Y"

# No two share a first or a last character, so two renderings part exactly where the content starts (and, read from
# the right, where it ends) unless one of them merges there. Common words, so that the boundary is the usual one.
_PROBES = ("How many boats are left", "what is in the harbour?", "Tell me the time.", "42 people came home in 1931")
_PROBE_CALL = ToolCall(name="find_harbour", arguments={"town": "Seven Lanterns"})

# What a template can run into besides its own raise_exception: it is a program, and the data may not fit it.
_TEMPLATE_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_CACHE_SIZE = 512


class ChatTokenizer(Protocol):
    """What the renderer needs of a tokenizer; those of `transformers` fit."""

    bos_token: str | None
    eos_token: str | None
    added_tokens_decoder: Mapping[int, Any]

    def get_chat_template(self, chat_template: str | None, tools: Any) -> str: ...  # noqa: D102
    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...  # noqa: D102
    def __call__(self, text: str, *, add_special_tokens: bool) -> Mapping[str, Any]: ...  # noqa: D102


@dataclass(frozen=True)
class _Opening:
    """How the template frames a reply, apart from its generation prompt."""

    header: str
    """Text between generation prompt and reply that belongs to the prompt (GPT-OSS: the final channel's header)."""
    filler: str
    """Text there that does not (Qwen3 with thinking on: an empty think block, which would switch thinking off)."""
    end: str
    """What closes a reply, up to and with its first special token."""
    trims: bool
    """True where the template strips white space around a reply."""


class Renderer:
    """Renders conversations for one tokenizer, one system prompt and one set of template arguments.

    The template is read once, here: changing `tokenizer.chat_template` later has no effect on this renderer.

    Args:
        tokenizer: A tokenizer with a chat template.
        system: System message for conversations that bring none. None leaves that to the template, which may have a
            default of its own; an empty string is an empty system message. "none" takes the system block out of what
            the template writes, its default included; "no-prefix" takes out all before the user's content.
        template_kwargs: Arguments of the template, JSON-able: `enable_thinking`, `tools`, `date_string` ("26 Jul
            2024" by default; functions of the template that ask for today get the same day), or `chat_template`.

    Raises:
        InputError: No chat template, or an argument that the renderer sets itself or cannot record.
    """

    def __init__(self, tokenizer: ChatTokenizer, system: str | None = None, **template_kwargs: Any) -> None:
        self._tokenizer = tokenizer
        self._system = system
        override = template_kwargs.pop("chat_template", None)
        self._arguments = _recordable({"date_string": PINNED_DATE, **template_kwargs})
        self._template = _template_of(tokenizer, override, self._arguments.get("tools"))
        self._today = _day(self._arguments["date_string"])
        if "enable_thinking" in self._arguments and "enable_thinking" not in self._template:
            what = "the chat template knows no thinking to switch on or off"
            raise InputError(what, where="--thinking", hint="Leave it out")
        if self._is_bare and self._arguments.get("tools"):
            what = f"the tools would be lost: the template writes them in what --system {system} leaves out"
            raise InputError(what, where=f"--system {system}", hint="Leave it out")
        self._edge_cache: dict[tuple[object, ...], tuple[Ids, Ids]] = {}
        self._tool_format: ToolFormat | None = None

    def render(self, messages: Sequence[Message], *, where: str | None = None) -> Prompt:
        """Token ids of a conversation up to where the reply starts, and its spans.

        Args:
            messages: At most one system or developer turn, then user and assistant by turns (tool turns after an
                assistant turn that calls tools), a user turn last. The last user content may be empty.
            where: `file:line` of the conversation, for errors.

        Returns:
            The prompt. Its prefix is the part of `prefix_ids()` (of this conversation's own, where it brings a system
            message) that this content leaves unmerged.

        Raises:
            InputError: Another order of turns, an empty assistant turn, or a template that refuses or ignores a turn.
        """
        with _located(where):
            turns = self._complete(messages)
            return self._prompt(turns, self._prompt_text(turns))

    def render_reply(
        self, messages: Sequence[Message], reply: Message, *, where: str | None = None
    ) -> tuple[Prompt, Ids]:
        """The prompt of a conversation, and the ids of a reply up to and with its end-of-turn token.

        The reply is tokenised apart from the prompt, since that is how a model generates it. Tool calls are written
        in `tool_format`.

        Raises:
            InputError: As `render`; also an empty reply, or one that the template cannot write whole.
        """
        with _located(where):
            turns = self._complete(messages)
            text = self._prompt_text(turns)
            return self._prompt(turns, text), self._ids(self._reply_text(turns, text, reply))

    def prefix_ids(self) -> Ids:
        """The canonical prefix: what a single user turn gets in front of it, with this renderer's system prompt."""
        return self._edges(self._plain, len(self._plain) - 1)[0]

    def postfix_ids(self) -> Ids:
        """The canonical postfix: what a single user turn gets behind it, up to where the reply starts."""
        return self._edges(self._plain, len(self._plain) - 1)[1]

    def is_foreign(self, prompt: Prompt) -> bool:
        """True where a prompt's prefix is not the canonical one.

        So it is for a question with a system prompt of its own, and for content that merges with the template's text.
        """
        return prompt.ids[: prompt.prefix.stop] != self.prefix_ids()

    @property
    def tool_format(self) -> ToolFormat:
        """How tool calls are written: as the template does, if that can follow the prompt, else as Hermes-style text.

        Found by trial the first time it is needed, one answer for all conversations.
        """
        if self._tool_format is None:
            self._tool_format = "native" if self._writes_tool_calls() else "hermes"
        return self._tool_format

    @property
    def fingerprint(self) -> str:
        """Sha256 (hex) of all that shapes a prompt: template, arguments with the date, system prompt, BOS and EOS."""
        return _sha256(json.dumps({"template": self._template, **self._identity()}))

    def describe(self) -> dict[str, Any]:
        """What a manifest records of this renderer, JSON-able. `tool_format` is None until it was needed."""
        return {
            "fingerprint": self.fingerprint,
            "template_sha256": _sha256(self._template),
            **self._identity(),
            "prefix_tokens": len(self.prefix_ids()),
            "postfix_tokens": len(self.postfix_ids()),
            "tool_format": self._tool_format,
        }

    def _identity(self) -> dict[str, Any]:
        tokens = {"bos_token": self._tokenizer.bos_token, "eos_token": self._tokenizer.eos_token}
        return {"arguments": self._arguments, "system": self._system, **tokens}

    @cached_property
    def _plain(self) -> tuple[Message, ...]:
        """The plainest conversation: one user turn, behind the renderer's system prompt."""
        return self._complete([Message(role="user", content=_PROBES[0])])

    def _complete(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        check_order(messages)
        if self._system is None or self._is_bare or messages[0].role != "user":
            return tuple(messages)
        return Message(role="system", content=self._system), *messages

    # From turns to text to ids

    def _text(self, turns: Sequence[Message], *, prompt: bool, native: bool | None = None) -> str:
        """The conversation as the template writes it, bare if asked for; with `prompt`, the generation prompt too."""
        text = self._written(turns, prompt=prompt, native=native)
        if not self._is_bare or turns[0].role != "user":
            return text
        lead, header = self._lead
        if not text.startswith(lead):
            what = "the chat template starts this conversation in another way than others"
            raise InputError(what, where=f"--system {self._system}", hint="Leave it out")
        return header + text.removeprefix(lead)

    @property
    def _is_bare(self) -> bool:
        return self._system in (NO_SYSTEM, NO_PREFIX)

    @cached_property
    def _lead(self) -> tuple[str, str]:
        """What the template writes before the first user's content, and what is to stand there in its place.

        Without the system block that is the header of any later user turn, behind a BOS where there is one.
        """
        first, second, third = (Message(role="user", content=probe) for probe in _PROBES[:3])
        one, other = (self._written((turn,), prompt=True) for turn in (first, second))
        lead = one[: shared_start(one, other)]
        if self._system == NO_PREFIX:
            return lead, ""
        reply = Message(role="assistant", content=second.content)
        between = self._written((first, reply, third), prompt=True).partition(second.content)[2]
        between = between.partition(third.content)[0]
        ends = [between.find(token) + len(token) for token in self._specials if token in between]
        header = between[min(ends, default=0) :].lstrip()
        if not header or not lead.endswith(header):
            hint = f"Give a system prompt, or --system {NO_PREFIX}"
            what = "the chat template does not tell its system block from the user's header"
            raise InputError(what, where=f"--system {self._system}", hint=hint)
        bos = self._tokenizer.bos_token or ""
        return lead, (bos if lead.startswith(bos) and not header.startswith(bos) else "") + header

    def _written(self, turns: Sequence[Message], *, prompt: bool, native: bool | None = None) -> str:
        if native is None:
            native = any(turn.tool_calls for turn in turns) and self.tool_format == "native"
        fixed = {"tokenize": False, "chat_template": self._template, "strftime_now": self._today.strftime}
        try:
            text = self._tokenizer.apply_chat_template(
                as_dicts(turns, native), add_generation_prompt=prompt, **fixed, **self._arguments
            )
        except _TEMPLATE_ERRORS as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise InputError(f"the chat template refuses the conversation: {reason}") from error
        return str(text)

    def _prompt_text(self, turns: Sequence[Message]) -> str:
        return self._text(turns, prompt=True) + self._opening.header

    def _ids(self, text: str) -> Ids:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    # Spans

    def _prompt(self, turns: Sequence[Message], text: str) -> Prompt:
        ids = self._ids(text)
        users = [index for index, turn in enumerate(turns) if turn.role == "user"]
        lead, _ = self._edges(turns, users[0])
        _, tail = self._edges(turns, users[-1])
        start = shared_start(ids, lead)
        stop = max(start, len(ids) - shared_start(ids[::-1], tail[::-1]))
        return Prompt(ids=ids, prefix=Span(0, start), query=Span(start, stop), postfix=Span(stop, len(ids)))

    def _edges(self, turns: Sequence[Message], index: int) -> tuple[Ids, Ids]:
        """The ids around the content of turn `index`, whatever that content is; cached by everything else."""
        key = (index, *(turn.model_dump_json() for turn in with_content(turns, index, "")))
        if key not in self._edge_cache:
            if len(self._edge_cache) >= _CACHE_SIZE:
                del self._edge_cache[next(iter(self._edge_cache))]
            self._edge_cache[key] = self._probe_edges(turns, index)
        return self._edge_cache[key]

    def _probe_edges(self, turns: Sequence[Message], index: int) -> tuple[Ids, Ids]:
        for before in range(index + 1):
            self._check_heard(turns, before)
        rows = [self._ids(self._prompt_text(with_content(turns, index, probe))) for probe in _PROBES]
        return _agreed(rows), _agreed([row[::-1] for row in rows])[::-1]

    def _check_heard(self, turns: Sequence[Message], index: int) -> None:
        """A turn that the template leaves out would be lost without a word."""
        turn = turns[index]
        if turn.tool_calls and not turn.content:
            return
        texts = {self._text(with_content(turns, index, probe), prompt=True) for probe in _PROBES[:2]}
        if len(texts) == 1:
            raise InputError(f"the chat template ignores the content of the {turn.role} turn {turn.content[:40]!r}")

    # Replies

    @cached_property
    def _opening(self) -> _Opening:
        """Found by comparing the same conversation with different replies in it."""
        asked = self._text(self._plain, prompt=True)
        replies = (_PROBES[1], _PROBES[2], f" {_PROBES[1]} ")
        said = [self._text((*self._plain, Message(role="assistant", content=r)), prompt=False) for r in replies]
        if said[0] == said[1]:
            raise InputError("the chat template ignores assistant turns")
        head = said[0][: shared_start(said[0], said[1])]
        tail = said[0][len(said[0]) - shared_start(said[0][::-1], said[1][::-1]) :]
        gap = head[len(asked) :] if head.startswith(asked) else ""
        self._check_generation_prompt(asked, gap)
        # A header ends in a special token; anything else is text that the model is free to write or not.
        header = gap if gap.endswith(self._specials) else ""
        return _Opening(header, gap.removeprefix(header), self._end(tail), trims=said[0] == said[2])

    def _check_generation_prompt(self, asked: str, gap: str) -> None:
        ignored = bool(gap.strip()) and asked == self._text(self._plain, prompt=False)
        if ignored or asked.endswith(_PROBES[0]):
            hint = "Give it an `add_generation_prompt` branch that writes what comes before a reply"
            raise InputError("the chat template has no generation prompt", hint=hint)

    @cached_property
    def _specials(self) -> tuple[str, ...]:
        added = {str(token.content) for token in self._tokenizer.added_tokens_decoder.values() if token.special}
        return tuple(sorted(added | ({self._tokenizer.eos_token} if self._tokenizer.eos_token else set())))

    def _end(self, tail: str) -> str:
        """The start of `tail` up to and with its first special token; EOS where the template closes with none."""
        stops = [(tail.find(token), len(token)) for token in self._specials if token in tail]
        if stops:
            at, size = min(stops)
            return tail[: at + size]
        if not self._tokenizer.eos_token:
            raise InputError("neither chat template nor tokenizer has a token that ends a reply")
        return self._tokenizer.eos_token

    def _reply_text(self, turns: Sequence[Message], prompt_text: str, reply: Message) -> str:
        if reply.role != "assistant":
            raise InputError(f"the reply has the role {reply.role}, not assistant")
        if not (reply.content.strip() or reply.tool_calls):
            raise InputError("the reply is empty")
        if reply.tool_calls and self.tool_format == "native":
            return self._native_reply(turns, prompt_text, reply)
        content = hermes(reply)
        return (content.strip() if self._opening.trims else content) + self._opening.end

    def _native_reply(self, turns: Sequence[Message], prompt_text: str, reply: Message) -> str:
        text = self._text((*turns, reply), prompt=False, native=True)
        if not text.startswith(prompt_text):
            raise InputError("the chat template does not write tool calls behind its generation prompt")
        written = text[len(prompt_text) :].removeprefix(self._opening.filler)
        for part in (reply.content.strip(), *(call.name for call in reply.tool_calls)):
            if part not in written:
                raise InputError(f"the chat template drops {part[:40]!r} from a reply with a tool call")
        # The call itself may hold special tokens ([TOOL_CALLS]): the turn ends with the last one, if nothing follows.
        stop = max((written.rfind(token) + len(token) for token in self._specials if token in written), default=0)
        return written + self._end("") if written[stop:].strip() else written[:stop]

    def _writes_tool_calls(self) -> bool:
        call = Message(role="assistant", tool_calls=(_PROBE_CALL,))
        try:
            written = self._native_reply(self._plain, self._prompt_text(self._plain), call)
        except InputError:
            return False
        # A template made for arguments that are JSON text would print our mapping as Python writes it.
        as_python = str(_PROBE_CALL.arguments) in written
        return not as_python and "town" in written and "Seven Lanterns" in written


def thinking(wanted: bool | None) -> dict[str, bool]:
    """The renderer's arguments for a template that can think or not; None leaves that to the template."""
    return {} if wanted is None else {"enable_thinking": wanted}


@contextmanager
def _located(where: str | None) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        if where is None or error.where is not None:
            raise
        raise InputError(error.what, where=where, hint=error.hint) from error


def _recordable(arguments: dict[str, Any]) -> dict[str, Any]:
    """A copy of the template arguments as JSON keeps them, in a fixed order at the top level."""
    try:
        copy: dict[str, Any] = json.loads(json.dumps(arguments))
    except (TypeError, ValueError) as error:
        raise InputError(f"the template arguments are not JSON: {error}") from error
    # Inner order stays: templates print it (tools).
    return {name: copy[name] for name in sorted(copy)}


def _template_of(tokenizer: ChatTokenizer, override: str | None, tools: Any) -> str:
    try:
        return tokenizer.get_chat_template(override, tools)
    except ValueError as error:
        hint = "Use the instruct version of the model, or set `tokenizer.chat_template` to the one it was trained with"
        raise InputError("the tokenizer has no chat template", hint=hint) from error


def _day(date_string: object) -> datetime:
    try:
        return datetime.strptime(str(date_string), _DATE_FORMAT)
    except ValueError as error:
        raise InputError(f"date_string '{date_string}' is not a date", hint=f"Write it as '{PINNED_DATE}'") from error


def shared_start(left: Sequence[object], right: Sequence[object]) -> int:
    """How many items two sequences share from their start."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))


def _agreed(rows: Sequence[Ids]) -> Ids:
    """The longest start that two rows share: a row whose content merges at the boundary can only shorten it."""
    return max((a[: shared_start(a, b)] for a, b in combinations(rows, 2)), key=len)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
