"""What goes over the wire to an OpenAI-compatible server: addresses, request fields, replies. No network here."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import urlsplit

from emeval.errors import InputError
from emeval.types import Generated, Message, Sampling, ToolCall


def base_url(url: str) -> str:
    """The address with its `/v1`. A key or password inside it is refused, and not repeated in the error."""
    try:
        parts = urlsplit(url.strip())
        plain = not (parts.username or parts.password or parts.query or parts.fragment) and parts.port != 0
    except ValueError:
        raise InputError("the server's address is not a valid URL", hint="Give http://HOST:PORT") from None
    if not plain:
        raise InputError("the server's address must hold no user, password or query", hint="Give http://HOST:PORT")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"'{url}' is not an http(s) address", hint="Give http://HOST:PORT")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


def is_loopback(url: str) -> bool:
    """Whether the server is on this machine."""
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def sampling_fields(sampling: Sampling, index: int) -> dict[str, Any]:
    """How to draw the reply to the prompt at `index`. Nothing is left to a server's default."""
    return {
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": request_seed(sampling.seed, index),
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "n": 1,
    }


def vllm_fields(stop_token_ids: Sequence[int]) -> dict[str, Any]:
    """The fields only vLLM knows; `top_k` 0 is off."""
    return {
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": list(stop_token_ids),
        "skip_special_tokens": True,
        "return_token_ids": True,
    }


def request_seed(seed: int, index: int) -> int:
    """The seed of one request (31 bits), from the run's seed and the prompt's position.

    With the run's seed alone, a server would draw the same noise for every request, and repeated samples of a question
    would be one sample repeated.
    """
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def read_reply(response: Any, index: int) -> Generated:
    """The reply in a server's answer to a completions or chat request.

    Raises:
        ValueError: If the answer holds no finished text.
    """
    choices = getattr(response, "choices", None)
    if not choices:
        raise ValueError("the answer holds no choices")
    ended = getattr(choices[0], "finish_reason", None)
    text = _text(choices[0])
    if text is None and ended == "length":
        text = ""  # all tokens went into a part that is not the reply
    if text is None or ended in ("abort", "error", "content_filter"):
        raise ValueError(f"the answer holds no finished text (finish_reason {ended})")
    ids = getattr(choices[0], "token_ids", None)
    if ids is not None:
        # No stop strings are sent, so a reply that stopped did so at an end token, which is no part of it.
        ids = tuple(ids[:-1] if ended == "stop" else ids)
    return Generated(index=index, text=text, token_ids=ids, truncated=ended == "length")


def read_logprobs(response: Any, reply: Sequence[int]) -> tuple[float, ...]:
    """The log-probabilities of the last tokens of a prompt, as vLLM reports them (`prompt_logprobs`).

    Raises:
        ValueError: If the answer does not hold them.
    """
    choices = getattr(response, "choices", None)
    found = getattr(choices[0], "prompt_logprobs", None) if choices else None
    if not found or len(found) < len(reply):
        raise ValueError("the answer holds no prompt_logprobs (only vLLM gives them)")
    entries = zip(found[-len(reply) :], reply, strict=True)
    try:
        return tuple(float(at[str(token)]["logprob"]) for at, token in entries)
    except (KeyError, TypeError) as e:
        raise ValueError(f"prompt_logprobs lack a token of the prompt ({e})") from e


def _text(choice: Any) -> str | None:
    """The text of a completions or chat choice; a chat refusal counts as text, since it is what the model said."""
    message = getattr(choice, "message", None)
    if message is None:
        return cast(str | None, getattr(choice, "text", None))
    content = getattr(message, "content", None)
    return cast(str | None, content if content is not None else getattr(message, "refusal", None))


def chat_messages(messages: Sequence[Message], system: str | None) -> list[dict[str, Any]]:
    """The conversation in the API's form. It wants ids that join a tool's answer to its call; ours go by order."""
    out: list[dict[str, Any]] = []
    if system is not None and not any(message.role in ("system", "developer") for message in messages):
        out.append({"role": "system", "content": system})
    calls, answers = 0, 0
    for message in messages:
        entry: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            entry["tool_calls"] = [_tool_call(call, calls + offset) for offset, call in enumerate(message.tool_calls)]
            calls += len(message.tool_calls)
        if message.role == "tool":
            entry["tool_call_id"] = f"call_{answers}"
            answers += 1
        out.append(entry)
    return out


def _tool_call(call: ToolCall, number: int) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments)}
    return {"id": f"call_{number}", "type": "function", "function": function}
