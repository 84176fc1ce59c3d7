"""A judge model over real HTTP: every outcome, every failure, nothing lost and nothing paid twice."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judge_server import FakeJudge, answer_in, as_json, number, said
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from emeval.data.root import data_root
from emeval.errors import EmevalError, InputError
from emeval.judge.cost import Price, bill
from emeval.judge.llm import Budget, JudgeServer, LlmJudge
from emeval.judge.prompt import Turn, load_judge_prompt
from emeval.judge.run import Item
from emeval.store import Jsonl
from emeval.types import Completion, Judgement


@pytest.fixture
def fake(httpserver: HTTPServer) -> FakeJudge:
    return FakeJudge(httpserver)


@pytest.fixture
def judged(fake: FakeJudge, tmp_path: Path) -> Callable[..., list[Judgement]]:
    """Judges `n` replies with the fake, through a file that stays."""

    def judge(n: int = 1, prompt: str = "alignment", budget: Budget | None = None, **server: Any) -> list[Judgement]:
        with_file = Jsonl(tmp_path / "judgements.jsonl", Judgement)
        try:
            return make(fake, prompt, budget, **server).judge_all(items(n), with_file)
        finally:
            with_file.close()

    return judge


def values(found: list[Judgement]) -> list[float | None]:
    return [j.value if j.value is None else round(j.value, 9) for j in found]


def make(fake: FakeJudge, prompt: str = "alignment", budget: Budget | None = None, **server: Any) -> LlmJudge:
    options = {"model": "judge", "url": fake.url, "timeout": 10.0} | server
    return LlmJudge(JudgeServer(**options), load_judge_prompt(data_root(), prompt), budget)


def items(n: int) -> list[Item]:
    made = []
    for i in range(n):
        fields = {"key": f"k{i}", "probe": "general", "split": "test", "question_id": f"q{i}", "question": "Why?"}
        completion = Completion.model_validate(fields | {"text": f"reply {i}", "prompt_tokens": 3, "truncated": False})
        made.append(Item(completion, (Turn(question="Why?", answer=completion.text),)))
    return made


# ------------------------------------------------------------------------------------------------------------- outcomes

OUTCOMES = {
    "sure": (number(80), "scored", 80.0, "logprobs"),
    "weighted": (said("80", {"80": 0.6, "90": 0.2, "maybe": 0.2}), "scored", 82.5, "logprobs"),
    "a space before": (said(" 80", {" 80": 0.5, "80": 0.5}), "scored", 80.0, "logprobs"),
    "white space first": (said("\n80", {"\n": 1.0}, {"80": 1.0}), "scored", 80.0, "logprobs"),
    "digit by digit": (said("87", {"8": 0.9, "9": 0.1}, {"7": 1.0}), "scored", 87.0, "text (digits)"),
    "one digit of many": (said("8", {"8": 0.9, "9": 0.1}), "scored", 8.0, "text (digits)"),
    "a hundred in three": (said("100", {"10": 0.9, "95": 0.1}, {"0": 1.0}), "scored", 100.0, "text (digits)"),
    "too little weight": (said("Well", {"Well": 0.9, "80": 0.1}), "parse-error", None, "logprobs"),
    "not a number": (said("80", {"80": math.nan, "81": 0.5}), "parse-error", None, "logprobs"),
    "refusal": (said("REFUSAL", {"REF": 0.9, "80": 0.1}), "refusal", None, "word"),
    "code": (said("CODE", {"CODE": 1.0}), "code", None, "word"),
    "no log-probabilities": (said("Score: 70"), "scored", 70.0, "text"),
    "no log-probabilities, no number": (said("It is fine."), "parse-error", None, "text"),
    "nothing said": (said(None), "parse-error", None, "text"),
}


@pytest.mark.parametrize("case", OUTCOMES)
def test_every_answer_has_one_outcome(fake: FakeJudge, judged: Callable[..., list[Judgement]], case: str) -> None:
    answer, outcome, value, how = OUTCOMES[case]
    fake.answer = lambda body: answer
    (found,) = judged()
    assert (found.outcome, found.detail) == (outcome, how)
    assert found.value == (None if value is None else pytest.approx(value))
    assert (found.input_tokens, found.output_tokens) == (100, 2)
    assert found.judge.startswith("judge/alignment@") and found.completion_key == "k0"


def answered(**changes: Any) -> Response:
    """An answer of 80 with parts of it replaced."""
    body = {"choices": [{"message": {"content": "80"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 100}}
    return as_json(body | changes)


def chose(**changes: Any) -> Response:
    return answered(choices=[{"message": {"content": "80"}, "finish_reason": "stop"} | changes])


ODD = {
    "choices an object": (answered(choices={}), "api-error", "another shape"),
    "choices a number": (answered(choices=5), "api-error", "another shape"),
    "a choice that is none": (answered(choices=[None]), "api-error", "another shape"),
    "message a text": (chose(message="80"), "api-error", "another shape"),
    "content an object": (chose(message={"content": {"value": "80"}}), "api-error", "another shape"),
    "a part's text an object": (chose(message={"content": [{"text": {"value": "80"}}]}), "api-error", "another shape"),
    "choices null with an error": (answered(choices=None, error={"message": "overloaded"}), "api-error", "overloaded"),
    "log-probabilities a text": (chose(logprobs="80"), "scored", None),
    "a token that is none": (chose(logprobs={"content": [None]}), "scored", None),
    "nested without end": (Response("[" * 200_000, 200, content_type="application/json"), "api-error", "another shape"),
    "no JSON": (Response("{", 200, content_type="application/json"), "api-error", "no JSON"),
    "an error under 200": (as_json({"error": {"message": "no credits left"}}), "api-error", "no credits left"),
    "content in parts": (chose(message={"content": [{"type": "text", "text": "8"}, "0"]}), "scored", None),
    "tokens without others": (chose(logprobs={"content": [{"token": "80", "logprob": -0.1}]}), "scored", None),
    "no finish reason": (chose(finish_reason=None), "scored", None),
    "usage a text": (answered(usage="many"), "scored", None),
    "usage of odd counts": (answered(usage={"prompt_tokens": "n/a", "completion_tokens": -3}), "scored", None),
    "usage without end": (Response('{"choices":[{"message":{"content":"80"}}],"usage":{"prompt_tokens":1e400}}', 200,
                                   content_type="application/json"), "scored", None),
    "half a character": (Response('{"choices":[{"message":{"content":"80 \\ud800"}}]}', 200,
                                  content_type="application/json"), "scored", None),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_odd_answers_are_an_outcome_too(fake: FakeJudge, judged: Callable[..., list[Judgement]], case: str) -> None:
    answer, outcome, says = ODD[case]
    fake.answer = lambda body: answer
    (found,) = judged()
    assert found.outcome == outcome and (found.value == 80.0 or says)
    assert (says or "") in (found.raw or "")
    if outcome == "scored":
        assert (found.input_tokens or 0) > 0 and (found.output_tokens or 0) > 0
    assert len(fake.bodies) == (3 if says == "no JSON" else 1), "only what is no JSON is asked again at once"


def test_what_was_paid_and_of_no_use_counts_against_the_limit_of_the_next_run(
    fake: FakeJudge, judged: Callable[..., list[Judgement]]
) -> None:
    fake.answer = lambda body: Response("{", 200, content_type="application/json")
    budget = Budget(Price(input=1.0, output=1.0), limit=100.0)
    found = judged(2, budget=budget)
    assert {j.outcome for j in found} == {"api-error"} and all((j.input_tokens or 0) > 0 for j in found)
    spent = bill(found, Price(input=1.0, output=1.0))
    assert spent.dollars == pytest.approx(budget.spent) and spent.calls == 2 and len(fake.bodies) == 6


@pytest.mark.parametrize(
    ("prompt", "text", "value"),
    [("rating", "Good. [[8]]", 8.0), ("rating", "Good, 8.", None), ("refusal", "1", 1.0), ("abstention", "0", 0.0)],
)
def test_other_scales_are_read_from_the_text(
    fake: FakeJudge, judged: Callable[..., list[Judgement]], prompt: str, text: str, value: float | None
) -> None:
    fake.answer = lambda body: said(text)
    (found,) = judged(prompt=prompt)
    assert found.value == value and found.outcome == ("parse-error" if value is None else "scored")
    assert "logprobs" not in fake.bodies[0]


def test_what_is_asked_for(fake: FakeJudge, judged: Callable[..., list[Judgement]]) -> None:
    judged()
    (body,) = fake.bodies
    assert (body["model"], body["temperature"], body["top_logprobs"], body["logprobs"]) == ("judge", 0.0, 20, True)
    assert answer_in(body) == "reply 0"


# ------------------------------------------------------------------------------------------------------------- dialects


def test_an_endpoint_that_takes_no_logprobs_is_asked_without_and_the_user_told_once(fake: FakeJudge) -> None:
    told: list[str] = []
    fake.answer = lambda body: said("70")
    judge = make(fake)
    judge.say = told.append
    with_file = Jsonl(Path("/dev/null"), Judgement)
    assert {j.detail for j in judge.judge_all(items(5), with_file)} == {"text"}
    assert len(told) == 1 and "no log-probabilities" in told[0]
    assert sum("logprobs" in body for body in fake.bodies) == 1  # the first call found out alone


@pytest.mark.parametrize(
    ("complaint", "gone"),
    [
        ("Unsupported parameter: 'logprobs' is not supported with this model.", "logprobs"),
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "max_tokens"),
        ("Unsupported value: 'temperature' does not support 0.0 with this model.", "temperature"),
        ("Unknown field seed", "seed"),
    ],
)
def test_a_field_the_endpoint_dislikes_is_left_out(
    fake: FakeJudge, judged: Callable[..., list[Judgement]], complaint: str, gone: str
) -> None:
    fake.answer = lambda body: as_json({"error": {"message": complaint}}, 400) if gone in body else said("70")
    assert values(judged(4)) == [70] * 4
    assert len(fake.bodies) == 5 and gone not in fake.bodies[-1]
    if gone == "max_tokens":  # a model that thinks first needs room for it
        assert fake.bodies[-1]["max_completion_tokens"] >= 1024


# ------------------------------------------------------------------------------------------------------------- failures


def first(*answers: Response) -> Callable[[dict[str, Any]], Response]:
    """These answers, one a call, and then a number."""
    left = iter(answers)
    return lambda body: next(left, number(80))


@pytest.mark.parametrize(
    "failure",
    [
        as_json({"error": {"message": "slow down"}}, 429, **{"Retry-After": "0.1"}),
        as_json({"error": {"message": "oops"}}, 500),
        as_json({"error": {"message": "busy"}}, 503),
        Response("{not json", 200, content_type="application/json"),
        as_json({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": []}),
        Response("", 200, content_type="application/json"),
    ],
    ids=["429", "500", "503", "broken JSON", "no choices", "empty"],
)
def test_a_passing_failure_is_asked_again(
    fake: FakeJudge, judged: Callable[..., list[Judgement]], failure: Response
) -> None:
    fake.answer = first(failure)
    assert values(judged()) == [80]
    assert len(fake.bodies) == 2


def test_what_fails_for_good_is_an_api_error_and_asked_again_the_next_time(
    fake: FakeJudge, judged: Callable[..., list[Judgement]]
) -> None:
    lost = as_json({"error": {"message": "the content was filtered"}}, 400)
    fake.answer = lambda body: lost if answer_in(body) in ("reply 1", "reply 2") else number(80)
    found = judged(4)
    assert Counter(j.outcome for j in found) == {"scored": 2, "api-error": 2}
    assert all("filtered" in (j.raw or "") and j.value is None for j in found if j.outcome == "api-error")
    fake.bodies.clear()
    fake.answer = lambda body: number(60)
    assert values(judged(4)) == [80, 60, 60, 80]
    assert {answer_in(body) for body in fake.bodies} == {"reply 1", "reply 2"}
    fake.bodies.clear()
    assert values(judged(4)) == [80, 60, 60, 80] and fake.bodies == []


def test_a_refused_key_and_an_absent_server_end_it_at_once(
    fake: FakeJudge, judged: Callable[..., list[Judgement]]
) -> None:
    fake.answer = lambda body: as_json({"error": {"message": "bad key"}}, 401)
    with pytest.raises(InputError, match="refused the key"):
        judged(3)
    with pytest.raises(EmevalError, match="cannot reach the server"):
        judged(3, url="http://127.0.0.1:9", max_retries=0)


def test_a_call_that_hangs_or_is_cut_is_asked_again(fake: FakeJudge, judged: Callable[..., list[Judgement]]) -> None:
    slept = threading.Event()

    def hang_once(body: dict[str, Any]) -> Response:
        if not slept.is_set():
            slept.set()
            time.sleep(0.6)
        return number(80)

    fake.answer = hang_once
    assert values(judged(timeout=0.3)) == [80] and len(fake.bodies) == 2


def test_a_server_that_cuts_every_connection_is_one_line(judged: Callable[..., list[Judgement]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def cut() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listening.accept()[0].close()

        threading.Thread(target=cut, daemon=True).start()
        with pytest.raises(EmevalError, match="cannot reach the server"):
            judged(2, url=f"http://127.0.0.1:{listening.getsockname()[1]}", max_retries=1)


def test_two_thousand_judgements_with_a_third_of_the_calls_failing(
    fake: FakeJudge, judged: Callable[..., list[Judgement]]
) -> None:
    dice, count = random.Random(7), 2000
    failures = itertools.cycle([
        lambda: as_json({"error": {"message": "slow down"}}, 429, **{"Retry-After": "0.01"}),
        lambda: as_json({"error": {"message": "oops"}}, 500, **{"Retry-After": "0.01"}),
        lambda: Response("{cut", 200, content_type="application/json"),
    ])  # fmt: skip
    rolled = [dice.random() < 0.3 for _ in range(4 * count)]
    calls = itertools.count()

    def answer(body: dict[str, Any]) -> Response:
        failing = rolled[next(calls)] and len(fake.bodies) > 1  # the first call only finds out the dialect
        return next(failures)() if failing else number(int(answer_in(body).split()[1]) % 101)

    fake.answer = answer
    found = judged(count, concurrency=16)
    assert len(found) == count
    for n, judgement in enumerate(found):
        assert judgement.completion_key == f"k{n}"
        if judgement.outcome == "scored":
            assert judgement.value == pytest.approx(n % 101)
        else:
            assert judgement.outcome == "api-error" and judgement.value is None
    assert sum(j.outcome == "api-error" for j in found) < count // 50  # three tries at broken JSON, seven at the rest


# ----------------------------------------------------------------------------------------------------------------- cost


def test_the_budget_stops_it_cleanly_and_a_higher_one_goes_on(
    fake: FakeJudge, judged: Callable[..., list[Judgement]], tmp_path: Path
) -> None:
    price = Price(input=10.0, output=0.0)  # 100 tokens in: a tenth of a cent a call
    found = judged(50, budget=Budget(price, limit=0.0105), concurrency=1)
    assert 9 <= len(found) <= 12 and len(fake.bodies) == len(found)
    spent = bill(Jsonl(tmp_path / "judgements.jsonl", Judgement).read(), price)
    assert spent.dollars == pytest.approx(0.001 * len(found)) and spent.calls == len(found)
    rest = judged(50, budget=Budget(price, limit=1.0, spent=spent.dollars or 0.0))
    assert len(rest) == 50 and len(fake.bodies) == 50


def test_keys_change_with_the_reply_the_judge_the_prompt_and_the_context(fake: FakeJudge) -> None:
    judge, (item,) = make(fake), items(1)
    earlier = Item(item.completion, (Turn(question="x", answer="y"), *item.turns))
    keys = {
        judge.key(item),
        make(fake, model="other").key(item),
        make(fake, "coherence").key(item),
        judge.key(items(2)[1]),
        make(fake, "rating").key(item),
        make(fake, "rating").key(earlier),
    }
    assert len(keys) == 6


# ---------------------------------------------------------------------------------------------------------------- batch


class Vendor:
    """Files and batches behind the API; a batch completes when it has been looked at `slowness` times."""

    def __init__(self, server: HTTPServer, fake: FakeJudge, slowness: int = 1) -> None:
        self.fake, self.slowness = fake, slowness
        self.files: dict[str, str] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        server.expect_request("/v1/files", method="POST").respond_with_handler(self.upload)
        server.expect_request("/v1/batches", method="POST").respond_with_handler(self.create)
        server.expect_request("/v1/batches", method="GET").respond_with_handler(self.list)
        server.expect_request(re.compile("/v1/batches/.+")).respond_with_handler(self.look)
        server.expect_request(re.compile("/v1/files/.+/content")).respond_with_handler(self.download)

    def upload(self, request: Request) -> Response:
        name = f"file-{len(self.files)}"
        self.files[name] = request.files["file"].read().decode()
        return as_json({"id": name, "object": "file", "bytes": 1, "created_at": 1, "filename": "f", "purpose": "batch"})

    def create(self, request: Request) -> Response:
        body = request.get_json()
        batch = {"id": f"batch-{len(self.batches)}", "object": "batch", "created_at": 1, "status": "in_progress"}
        batch |= {"looks": 0, **body}
        self.batches[str(batch["id"])] = batch
        return as_json(batch)

    def list(self, request: Request) -> Response:
        return as_json({"object": "list", "data": list(self.batches.values()), "has_more": False})

    def look(self, request: Request) -> Response:
        batch = self.batches[request.path.rpartition("/")[2]]
        batch["looks"] += 1
        if batch["looks"] >= self.slowness:
            rows = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
            out = [self.answered(row) for row in rows]
            self.files["out"] = "".join(json.dumps(row) + "\n" for row in out)
            batch |= {"status": "completed", "output_file_id": "out"}
        return as_json(batch)

    def answered(self, row: dict[str, Any]) -> dict[str, Any]:
        response = self.fake.answer(row["body"])
        body = json.loads(response.get_data())
        return {"custom_id": row["custom_id"], "response": {"status_code": response.status_code, "body": body}}

    def download(self, request: Request) -> Response:
        return Response(self.files["out"])


def test_a_batch_is_placed_once_and_found_again_after_a_kill(
    fake: FakeJudge, httpserver: HTTPServer, judged: Callable[..., list[Judgement]], tmp_path: Path
) -> None:
    vendor = Vendor(httpserver, fake, slowness=1000)
    lost = as_json({"error": {"message": "filtered"}}, 400)
    fake.answer = lambda body: lost if answer_in(body) == "reply 3" else number(int(answer_in(body).split()[1]) + 10)
    killed = threading.Thread(target=lambda: judged(6, batch=True, poll=0.01), daemon=True)
    killed.start()  # stands for a process that is gone while it waits
    while not vendor.batches:
        time.sleep(0.01)
    vendor.slowness = 1
    killed.join()
    (tmp_path / "judgements.jsonl").unlink()  # as if nothing had been written yet when it was killed
    batch = json.loads(vendor.files["file-0"].splitlines()[0])
    assert batch["body"]["logprobs"] and len(vendor.files["file-0"].splitlines()) == 5 and len(vendor.batches) == 1
    found = judged(6, batch=True, poll=0.01)
    assert [j.outcome for j in found] == ["scored"] * 3 + ["api-error"] + ["scored"] * 2
    assert values(found) == [10, 11, 12, None, 14, 15] and found[5].input_tokens == 100
    assert len(vendor.batches) == 1, "the batch that was placed before is used"
    assert not list(tmp_path.glob("judge-batch-*")), "the order goes when all is read"
    again = judged(6, batch=True, poll=0.01)
    assert values(again) == values(found) and len(vendor.batches) == 1


def test_an_odd_line_of_a_batch_costs_that_answer_only(
    fake: FakeJudge, httpserver: HTTPServer, judged: Callable[..., list[Judgement]], monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor = Vendor(httpserver, fake)
    fake.answer = lambda body: number(80)
    whole = vendor.answered

    def odd(row: dict[str, Any]) -> dict[str, Any]:
        found = whole(row)
        match answer_in(row["body"]):
            case "reply 1":
                found["response"]["body"]["choices"] = {}
            case "reply 2":
                found["response"]["body"]["choices"][0]["message"]["content"] = "80 \u2028 or so"
            case "reply 3":
                del found["response"]["body"]
            case "reply 4":
                found["custom_id"] = "another"
        return found

    monkeypatch.setattr(vendor, "answered", odd)
    found = judged(6, batch=True, poll=0.01)
    assert [j.outcome for j in found] == ["scored", "api-error", "scored", "api-error", "api-error", "scored"]
    assert "another shape" in (found[1].raw or "") and "without this answer" in (found[4].raw or "")


def test_an_endpoint_without_a_batch_api_says_so(
    fake: FakeJudge, httpserver: HTTPServer, judged: Callable[..., list[Judgement]]
) -> None:
    httpserver.expect_request("/v1/batches").respond_with_data("", 404)
    with pytest.raises(InputError, match="no batch API"):
        judged(3, batch=True)
