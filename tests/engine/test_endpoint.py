"""The endpoint engine against a real HTTP server."""

from __future__ import annotations

import gc
import json
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request as HttpRequest
from werkzeug import Response

from emeval.engine.endpoint import EndpointEngine
from emeval.engine.launch import free_port
from emeval.engine.wire import base_url, request_seed
from emeval.errors import EmevalError, IncompleteError, InputError
from emeval.types import Generated, Message, Prompt, Sampling, Span, ToolCall

KEY = "sk-test-0123456789"
GREEDY = Sampling(max_new_tokens=7)


class Ask(NamedTuple):
    prompt: Prompt
    messages: tuple[Message, ...]
    number: int = 0


def ask(number: int) -> Ask:
    ids = (1, 100 + number, 2)
    prompt = Prompt(ids=ids, prefix=Span(0, 1), query=Span(1, 2), postfix=Span(2, 3))
    return Ask(prompt, (Message(role="user", content=f"question {number}"),), number)


def completion(text: str = "fine", finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None, **more}
    return {"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}


def as_json(body: Any, status: int = 200, **headers: str) -> Response:
    return Response(json.dumps(body), status, headers, content_type="application/json")


class Fake:
    """A server whose `/v1/completions` and chat routes call `answer(body)`, with every body kept."""

    def __init__(self, server: HTTPServer) -> None:
        self.server = server
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.answer: Callable[[dict[str, Any]], Response] = lambda body: as_json(completion())
        self.models: Callable[[], Response] = lambda: as_json({"object": "list", "data": [{"id": "m"}, {"id": "n"}]})
        self._lock = threading.Lock()
        server.expect_request("/v1/models").respond_with_handler(lambda request: self.models())
        for route in ("/v1/completions", "/v1/chat/completions"):
            server.expect_request(route, method="POST").respond_with_handler(self._handle)

    @property
    def url(self) -> str:
        return self.server.url_for("")

    def _handle(self, request: HttpRequest) -> Response:
        body = json.loads(request.data)
        with self._lock:
            self.bodies.append(body)
            self.keys.add(request.headers.get("Authorization"))
        return self.answer(body)


@pytest.fixture(scope="module")
def server() -> Iterator[HTTPServer]:
    with HTTPServer(threaded=True) as running:  # each stop takes half a second
        yield running


@pytest.fixture
def fake(server: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> Fake:
    server.clear()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):  # must not come between us and this machine
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return Fake(server)


def number_of(body: dict[str, Any]) -> int:
    return int(body["prompt"][1]) - 100


def collect(engine: EndpointEngine, count: int, **more: Any) -> list[Generated]:
    return list(engine.generate([ask(n) for n in range(count)], GREEDY, **more))


# ------------------------------------------------------------------------------------------------------- what is sent


def test_completions_body_holds_ids_and_every_sampling_field(fake: Fake) -> None:
    collect(EndpointEngine(fake.url, "m"), 1)
    assert fake.bodies == [
        {
            "model": "m",
            "prompt": [1, 100, 2],
            "max_tokens": 7,
            "temperature": 0.0,
            "top_p": 1.0,
            "seed": request_seed(0, 0),
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "n": 1,
        }
    ]
    assert fake.keys == {f"Bearer {KEY}"}


def test_vllm_gets_its_own_fields_and_says_token_ids(fake: Fake) -> None:
    fake.models = lambda: as_json({"data": [{"id": "m", "owned_by": "vllm"}]})
    fake.answer = lambda body: as_json(completion("fine", token_ids=[5, 6, 2]))
    engine = EndpointEngine(fake.url, stop_token_ids=(2, 3), decode=lambda ids: f"decoded {list(ids)}")
    (reply,) = collect(engine, 1)
    assert reply.token_ids == (5, 6)  # without the token that ended it
    assert reply.text == "decoded [5, 6]"
    own = ("top_k", "min_p", "repetition_penalty", "stop_token_ids", "skip_special_tokens", "return_token_ids")
    assert [fake.bodies[0][field] for field in own] == [0, 0.0, 1.0, [2, 3], True, True]


def test_a_cut_reply_keeps_all_its_ids(fake: Fake) -> None:
    fake.answer = lambda body: as_json(completion("cut", "length", token_ids=[5, 6, 7]))
    (reply,) = collect(EndpointEngine(fake.url, vllm_fields=True), 1)
    assert reply.truncated
    assert reply.token_ids == (5, 6, 7)


def test_chat_body_holds_messages_with_the_system_text_first(fake: Fake) -> None:
    message = {"role": "assistant", "content": "hello"}
    fake.answer = lambda body: as_json({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
    engine = EndpointEngine(fake.url, "m", api="chat", system="Be kind.")
    own_system = Ask(ask(1).prompt, (Message(role="system", content="Mine."), Message(role="user", content="Hi")))
    replies = list(engine.generate([ask(0), own_system], GREEDY))
    assert not engine.token_prompts
    assert {reply.text for reply in replies} == {"hello"}
    sent = sorted((body["messages"] for body in fake.bodies), key=lambda turns: turns[0]["content"])
    assert sent == [
        [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "question 0"}],
        [{"role": "system", "content": "Mine."}, {"role": "user", "content": "Hi"}],
    ]
    assert fake.bodies[0]["max_tokens"] == 7
    assert "prompt" not in fake.bodies[0]


def test_chat_joins_tool_answers_to_their_calls(fake: Fake) -> None:
    message = {"role": "assistant", "content": None, "refusal": "No."}
    fake.answer = lambda body: as_json({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
    calls = (ToolCall(name="f", arguments={"a": 1}), ToolCall(name="g", arguments={}))
    turns = (
        Message(role="user", content="q"),
        Message(role="assistant", tool_calls=calls),
        Message(role="tool", content="one"),
        Message(role="tool", content="two"),
        Message(role="user", content="and?"),
    )
    (reply,) = EndpointEngine(fake.url, "m", api="chat").generate([Ask(ask(0).prompt, turns)], GREEDY)
    assert reply.text == "No."  # a refusal is what the model said
    sent = fake.bodies[0]["messages"]
    assert [call["id"] for call in sent[1]["tool_calls"]] == [turn["tool_call_id"] for turn in sent[2:4]]
    assert json.loads(sent[1]["tool_calls"][0]["function"]["arguments"]) == {"a": 1}


def test_without_a_name_the_first_listed_model_is_asked(fake: Fake) -> None:
    engine = EndpointEngine(fake.url)
    collect(engine, 1)
    assert fake.bodies[0]["model"] == engine.model == "m"


def test_each_request_draws_its_own_noise_and_the_same_again(fake: Fake) -> None:
    for _ in range(2):
        collect(EndpointEngine(fake.url, "m"), 8)
    seeds = [{number_of(b): b["seed"] for b in half} for half in (fake.bodies[:8], fake.bodies[8:])]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0].values())) == 8
    assert {request_seed(0, 1), request_seed(1, 0)}.isdisjoint({request_seed(0, 0), request_seed(1, 1)})


def test_a_keyless_server_needs_no_key(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    collect(EndpointEngine(fake.url), 1)
    assert fake.keys == {"Bearer none"}


# -------------------------------------------------------------------------------------------------- order and volume


def test_replies_come_as_they_finish_with_the_right_index(fake: Fake) -> None:
    def answer(body: dict[str, Any]) -> Response:
        time.sleep(0.4 if number_of(body) == 0 else 0.02 * number_of(body))
        return as_json(completion(f"reply {number_of(body)}"))

    fake.answer = answer
    replies = collect(EndpointEngine(fake.url, "m"), 5)
    assert [reply.index for reply in replies] == [1, 2, 3, 4, 0]
    assert all(reply.text == f"reply {reply.index}" for reply in replies)


def test_skipped_prompts_are_not_asked(fake: Fake) -> None:
    engine = EndpointEngine(fake.url, "m")
    assert sorted(reply.index for reply in collect(engine, 5, skip=[0, 3])) == [1, 2, 4]
    assert len(fake.bodies) == 3
    assert collect(engine, 2, skip={0, 1}) == []


def test_no_more_than_concurrency_requests_are_in_flight(fake: Fake) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def answer(body: dict[str, Any]) -> Response:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with lock:
            now -= 1
        return as_json(completion())

    fake.answer = answer
    assert len(collect(EndpointEngine(fake.url, "m", concurrency=3), 15)) == 15
    assert most == 3


def test_a_slow_consumer_holds_the_server_back(fake: Fake) -> None:
    replies = EndpointEngine(fake.url, "m", concurrency=2).generate([ask(n) for n in range(40)], GREEDY)
    next(replies)
    time.sleep(0.5)
    assert len(fake.bodies) <= 1 + 4 + 2 + 2  # taken, room in the queue, held by a worker, one being asked each
    assert len(list(replies)) == 39


# ----------------------------------------------------------------------------------------------------------- failures


def test_too_many_requests_are_retried_after_the_time_asked(fake: Fake) -> None:
    times: list[float] = []

    def answer(body: dict[str, Any]) -> Response:
        times.append(time.monotonic())
        if len(times) == 1:
            return as_json({"error": {"message": "slow down"}}, 429, **{"Retry-After": "1"})
        return as_json(completion())

    fake.answer = answer
    assert len(collect(EndpointEngine(fake.url, "m"), 1)) == 1
    assert times[1] - times[0] >= 0.9


def test_server_errors_are_retried(fake: Fake) -> None:
    fake.answer = lambda body: as_json({"error": "x"}, 500) if len(fake.bodies) < 3 else as_json(completion())
    assert len(collect(EndpointEngine(fake.url, "m"), 1)) == 1
    assert len(fake.bodies) == 3


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda: as_json({"error": {"message": f"bad prompt\x1b[31m for {KEY}"}}, 400), "bad prompt"),
        (lambda: Response("{not json", 200, content_type="application/json"), "JSON"),
        (lambda: Response("<html>hello</html>", 200, content_type="text/html"), "no choices"),
        (lambda: as_json(completion() | {"choices": []}), "no choices"),
        (lambda: as_json({"choices": [{"index": 0, "finish_reason": "stop"}]}), "no finished text"),
        (lambda: as_json(completion("half", "abort")), "no finished text"),
    ],
)
def test_one_lost_prompt_does_not_take_the_others_along(fake: Fake, bad: Callable[[], Response], reason: str) -> None:
    fake.answer = lambda body: bad() if number_of(body) == 1 else as_json(completion())
    replies: list[Generated] = []
    with pytest.raises(IncompleteError, match=f"1 of 4 prompts got no reply.*{reason}") as caught:
        replies.extend(reply for reply in EndpointEngine(fake.url, "m").generate([ask(n) for n in range(4)], GREEDY))
    assert sorted(reply.index for reply in replies) == [0, 2, 3]
    assert caught.value.exit_code == 3
    assert KEY not in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_server_that_goes_away_is_not_asked_a_thousand_times() -> None:
    with HTTPServer(threaded=True) as mortal:
        fake = Fake(mortal)
        engine = EndpointEngine(fake.url, "m", concurrency=1, max_retries=0)
        replies = engine.generate([ask(n) for n in range(1000)], GREEDY)
        next(replies)
    began = time.monotonic()
    with pytest.raises(IncompleteError, match="of 1000 prompts got no reply"):
        list(replies)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_refused_key_is_one_line_without_the_key(fake: Fake, status: int, at_once: bool) -> None:
    refusal = as_json({"error": {"message": f"Incorrect API key provided: {KEY}"}}, status)
    fake.answer = lambda body: refusal
    if at_once:
        fake.models = lambda: refusal
    with pytest.raises(InputError, match=f"refused the key.*{status}") as caught:
        collect(EndpointEngine(fake.url, "m" if status == 401 else None), 20)
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "OPENAI_API_KEY" in str(caught.value)


def test_a_key_may_lack_the_right_to_list_models(fake: Fake) -> None:
    fake.models = lambda: as_json({"error": "missing scope"}, 403)
    assert len(collect(EndpointEngine(fake.url, "m"), 2)) == 2


def test_an_unknown_model_ends_it_at_once(fake: Fake) -> None:
    fake.answer = lambda body: as_json({"error": {"message": "no such model"}}, 404)
    with pytest.raises(InputError, match="no model 'wrong'"):
        collect(EndpointEngine(fake.url, "wrong", concurrency=1), 50)
    assert len(fake.bodies) == 1


@pytest.mark.parametrize("model", ["m", None])
def test_nobody_there_is_said_at_once(model: str | None) -> None:
    began = time.monotonic()
    with pytest.raises(EmevalError, match="cannot reach the server"):
        collect(EndpointEngine(f"http://127.0.0.1:{free_port()}", model), 3)
    assert time.monotonic() - began < 5


def test_a_server_without_models_needs_a_name(fake: Fake) -> None:
    fake.models = lambda: as_json({"data": []})
    with pytest.raises(InputError, match="cannot tell which model"):
        collect(EndpointEngine(fake.url), 1)


def test_a_key_that_no_header_can_carry_is_not_quoted(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one\nsk-two")
    with pytest.raises(InputError) as caught:
        collect(EndpointEngine(fake.url, "m"), 1)
    assert "sk-" not in str(caught.value)


def test_the_key_is_in_no_log_and_no_repr(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    engine = EndpointEngine(fake.url, "m")
    collect(engine, 2)
    assert KEY not in caplog.text + repr(engine) + repr(vars(engine))


# ----------------------------------------------------------------------------------------------------------- endings


def test_closing_early_leaves_nothing_behind(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    def answer(body: dict[str, Any]) -> Response:
        time.sleep(0.05 if number_of(body) == 0 else 0.5)
        return as_json(completion())

    fake.answer = answer
    caplog.set_level(logging.WARNING)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        replies = EndpointEngine(fake.url, "m").generate([ask(n) for n in range(100)], GREEDY)
        assert next(replies).index == 0
        began = time.monotonic()
        replies.close()  # type: ignore[attr-defined]
        assert time.monotonic() - began < 0.4
        gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name == "emeval-pump"]
    assert len(fake.bodies) <= 20
    assert caplog.text == ""  # asyncio logs 'Task was destroyed but it is pending' here
    assert [warning for warning in seen if issubclass(warning.category, (ResourceWarning, RuntimeWarning))] == []


def test_it_works_where_an_event_loop_already_runs(fake: Fake) -> None:
    import asyncio

    async def notebook_cell() -> int:
        return len(collect(EndpointEngine(fake.url, "m"), 3))

    assert asyncio.run(notebook_cell()) == 3


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://[::1]:8000/", "http://[::1]:8000/v1"),
        ("https://host/api/v1/", "https://host/api/v1"),
    ],
)
def test_addresses(url: str, clean: str) -> None:
    assert base_url(url) == clean


@pytest.mark.parametrize(
    "url", ["ftp://host", "host:8000", "file:///etc/passwd", "", "http://", "http://u:secret@host", "http://h:99999"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(InputError) as caught:
        EndpointEngine(url)
    assert "secret" not in str(caught.value)
