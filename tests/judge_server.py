"""A judge model behind a real OpenAI-protocol HTTP server, with scripted answers, and every call kept."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

Answer = Callable[[dict[str, Any]], Response]
USAGE = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}


def as_json(body: Any, status: int = 200, **headers: str) -> Response:
    return Response(json.dumps(body), status, headers, content_type="application/json")


def said(
    text: str | None,
    *tops: Mapping[str, float],
    usage: dict[str, int] | None = USAGE,
    tokens: tuple[str, ...] | None = None,
    **more: Any,
) -> Response:
    """A chat completion. Each of `tops` gives the probabilities at one position, the likeliest being what was said."""
    logprobs = None
    if tops:
        names = tokens or tuple(max(top, key=lambda t: top[t]) for top in tops)
        logprobs = {"content": [_position(name, top) for name, top in zip(names, tops, strict=True)]}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    choice |= {"logprobs": logprobs} | more
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "judge", "choices": [choice]}
    return as_json(body | ({"usage": usage} if usage else {}))


def number(value: float) -> Response:
    """A sure judge's whole number, with its probability."""
    return said(f"{value:.0f}", {f"{value:.0f}": 0.98, "50": 0.0} if value != 50 else {"50": 0.98})


def _position(name: str, top: Mapping[str, float]) -> dict[str, Any]:
    entries = [{"token": t, "logprob": _log(p), "bytes": None} for t, p in top.items()]
    return {"token": name, "logprob": _log(top.get(name, 0.0)), "bytes": None, "top_logprobs": entries}


def _log(probability: float) -> float:
    return math.nan if math.isnan(probability) else math.log(max(probability, 1e-300))


def answer_in(body: dict[str, Any]) -> str:
    """The answer to be judged, as the judge sees it between its marks."""
    found = re.search(r"\[ANSWER (\w+)\]\n(.*)\n\[END OF ANSWER \1\]", body["messages"][-1]["content"], re.DOTALL)
    assert found, body["messages"][-1]["content"]
    return found.group(2)


class FakeJudge:
    """`answer(body)` says what comes back; `bodies` are the calls so far."""

    def __init__(self, server: HTTPServer) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.answer: Answer = lambda body: number(80)
        self.url = server.url_for("/v1")
        self._lock = threading.Lock()
        server.expect_request("/v1/models").respond_with_json({"object": "list", "data": [{"id": "judge"}]})
        server.expect_request("/v1/chat/completions").respond_with_handler(self._handle)

    def _handle(self, request: Request) -> Response:
        body = request.get_json()
        with self._lock:
            self.bodies.append(body)
        return self.answer(body)
