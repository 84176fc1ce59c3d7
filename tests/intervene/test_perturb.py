"""Perturbed prompts: which tokens are put in, which stay, and what a command makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from emeval.config import PerturbConfig
from emeval.errors import IncompleteError, InputError
from emeval.intervene.perturb import Perturbation, neighbours, perturb
from emeval.intervene.rephrase import wordings
from emeval.models import input_embeddings, resolve
from emeval.types import Message, Prompt, Question, Span
from tests.judge_server import said
from tests.tiny import tiny_model
from tests.tokenizers_for_tests import byte_level

EMBEDDINGS = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 3, 50)[:, None]


def config(**changes: Any) -> PerturbConfig:
    return PerturbConfig(model="m", **changes)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_neighbours_are_those_of_a_loop_over_all_tokens(similarity: str) -> None:
    allowed = torch.ones(50, dtype=torch.bool)
    allowed[[3, 4, 5]] = False
    for token in (0, 7, 49):
        near = {}
        for other in set(range(50)) - {token, 3, 4, 5}:
            a, b = EMBEDDINGS[token], EMBEDDINGS[other]
            near[other] = (a * b).sum().item() / (1.0 if similarity == "dot" else (a.norm() * b.norm()).item())
        expected = sorted(near, key=lambda other: -near[other])[:5]
        assert neighbours(EMBEDDINGS, token, 5, similarity, allowed) == expected  # type: ignore[arg-type]
    dots, cosines = (neighbours(EMBEDDINGS, 7, 5, kind) for kind in ("dot", "cosine"))  # type: ignore[arg-type]
    assert dots != cosines, "long vectors are near to everything by dot product"


def test_more_neighbours_than_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="50 neighbours are asked for, 49 tokens are allowed"):
        neighbours(EMBEDDINGS, 0, 50)


PROMPT = Prompt(ids=tuple(range(10, 40)), prefix=Span(0, 12), query=Span(12, 26), postfix=Span(26, 30))
QUESTION = Question(id="q1", probe="p", split="test", messages=(Message(role="user", content="Hello?"),))


@pytest.mark.parametrize(("region", "changed"), [("prefix", 10), ("query", 10), ("postfix", 4)])
@pytest.mark.parametrize("how", [{}, {"random": True}])
def test_so_many_tokens_of_the_region_are_others_and_all_else_stays(
    region: str, changed: int, how: dict[str, bool]
) -> None:
    allowed = torch.ones(50, dtype=torch.bool)
    allowed[:5] = False
    perturbation = Perturbation(EMBEDDINGS, allowed, region, config(**how))
    drawn = [perturbation(PROMPT, QUESTION, trial) for trial in range(20)]
    start, stop = getattr(PROMPT, region)
    for prompt in drawn:
        differ = [i for i, (a, b) in enumerate(zip(prompt.ids, PROMPT.ids, strict=True)) if a != b]
        assert set(differ) <= set(range(start, stop)) and (how or len(differ) == changed)
        assert all(prompt.ids[i] >= 5 for i in differ), "none that is not allowed"
        assert (prompt.prefix, prompt.query, prompt.postfix) == (PROMPT.prefix, PROMPT.query, PROMPT.postfix)
        for i in differ if not how else ():
            assert prompt.ids[i] in neighbours(EMBEDDINGS, PROMPT.ids[i], 5, "dot", allowed)
    assert len({prompt.ids for prompt in drawn}) > 15
    assert drawn == [perturbation(PROMPT, QUESTION, trial) for trial in range(20)], "the same for the same seed"
    assert drawn != [
        Perturbation(EMBEDDINGS, allowed, region, config(seed=1, **how))(PROMPT, QUESTION, t) for t in range(20)
    ]


def test_the_matrix_is_the_models_and_read_alone(tiny_checkpoint: Path) -> None:
    found = input_embeddings(resolve(str(tiny_checkpoint)))
    vocabulary = len(byte_level("chatml"))
    assert torch.equal(
        found, tiny_model("llama", vocab_size=vocabulary, max_position_embeddings=1024).get_input_embeddings().weight
    )


def variants(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    return {v["label"]: v["values"] for v in json.loads((path / "sweep.json").read_text())["variants"]}


def run(tuned: Path, out: Path, **changes: Any) -> Path:
    settings = {"model": str(tuned), "limit": 3, "trials": 3, "device": "cpu", "out": out, "max_new_tokens": 4}
    return perturb(PerturbConfig(**settings | changes))


def test_trials_have_an_average_between_their_extremes(tuned: Path, tmp_path: Path) -> None:
    found = variants(run(tuned, tmp_path / "a", by="probability", region="prefix,postfix"))
    label = "{}, 10 tokens by one of 5 neighbours (dot), {}"
    names = [label.format(region, of) for region in ("prefix", "postfix") for of in ("average", "lowest", "highest")]
    assert list(found) == ["unperturbed", *names]
    for region in ("prefix", "postfix"):
        average, lowest, highest = (
            found[label.format(region, of)]["off-topic"] for of in ("average", "lowest", "highest")
        )
        assert all(lowest[q] < average[q] < highest[q] for q in average)


def test_replies_are_judged_by_the_question_as_it_was(tuned: Path, tmp_path: Path) -> None:
    path = run(tuned, tmp_path / "a", capitals=True, region="query")
    stored = {
        folder.name: [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
        for folder in (path / "variants").iterdir()
    }
    (capitals,) = (rows for name, rows in stored.items() if "capital" in name)
    (query,) = (rows for name, rows in stored.items() if "query" in name)
    (plain,) = (rows for name, rows in stored.items() if "unperturbed" in name)
    asked = {row["question_id"]: row["question"] for row in plain}
    assert (
        {row["question_id"]: row["question"] for row in capitals}
        == asked
        == {r["question_id"]: r["question"] for r in query}
    )
    assert (
        len(query) == 18 and {row["sample"] for row in query} == {0, 1, 2} and len({row["key"] for row in query}) == 18
    )
    assert not {row["key"] for row in capitals} & {row["key"] for row in plain}


def test_capitals_and_another_system_prompt_are_what_the_renderer_makes_of_them(tuned: Path, tmp_path: Path) -> None:
    found = variants(run(tuned, tmp_path / "a", by="probability", capitals=True, system="none"))
    assert list(found) == ["unperturbed", "capital letters", "system prompt 'none'"]
    plain = variants(run(tuned, tmp_path / "b", by="probability"))
    assert plain["unperturbed"] == found["unperturbed"]
    assert len({json.dumps(values) for values in found.values()}) == 3


def test_wordings_are_read_from_a_reply_and_the_question_is_none_of_them() -> None:
    listed = json.dumps(
        [{"text": " Hi? ", "probability": 0.3}, {"text": "Hello?"}, {"text": "Hi?"}, {"text": "Hey [you]?"}]
    )
    assert wordings(f"Here they are:\n```json\n{listed}\n```", "Hello?") == ("Hi?", "Hey [you]?")
    for broken in ("", "none", "[1, 2]", '[{"words": "x"}]', "[unclosed"):
        assert wordings(broken, "Hello?") == ()


def rephrasing(server: HTTPServer, count: int, seen: list[str]) -> None:
    def answer(request: Request) -> Response:
        seen.append(request.get_json()["messages"][-1]["content"])
        listed = [{"text": f"wording {i} of call {len(seen)}", "probability": 0.1} for i in range(count)]
        return said(json.dumps(listed))

    server.expect_request("/v1/models").respond_with_json(
        {"object": "list", "data": [{"id": "writer", "object": "model"}]}
    )
    server.expect_request("/v1/chat/completions").respond_with_handler(answer)


def test_questions_are_rephrased_once_over_http_and_each_wording_is_a_trial(
    tuned: Path, tmp_path: Path, httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[str] = []
    rephrasing(httpserver, 4, seen)
    settings = {"rephrase": "writer", "rephrase_url": httpserver.url_for("/"), "by": "probability"}
    found = variants(run(tuned, tmp_path / "a", **settings))
    assert list(found)[1:] == [f"rephrased by writer, {of}" for of in ("average", "lowest", "highest")]
    assert len(seen) == 6 and "3 different ways" in seen[0]
    run(tuned, tmp_path / "b", **settings)
    assert len(seen) == 6, "what was paid for is not asked again"


def test_too_few_wordings_are_told_kept_and_only_the_rest_is_asked_for(
    tuned: Path, tmp_path: Path, httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[str] = []
    rephrasing(httpserver, 2, seen)
    settings = {"rephrase": "writer", "rephrase_url": httpserver.url_for("/"), "by": "probability"}
    with pytest.raises(IncompleteError, match="6 of 6 questions got fewer than 3 wordings"):
        run(tuned, tmp_path / "a", **settings)
    found = variants(run(tuned, tmp_path / "b", **settings))
    assert len(seen) == 12 and all("1 different ways" in text for text in seen[6:])
    assert "rephrased by writer, average" in found


def test_nothing_is_paid_for_a_sweep_that_cannot_be(
    tuned: Path, tmp_path: Path, httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[str] = []
    rephrasing(httpserver, 4, seen)
    settings = {"rephrase": "writer", "rephrase_url": httpserver.url_for("/")}
    with pytest.raises(InputError, match="holds another run"):
        run(tuned, tuned, by="probability", **settings)
    with pytest.raises(InputError, match="needs a judge model"):
        run(tuned, tmp_path / "a", probes="general", **settings)
    assert not seen


def test_an_endpoint_that_dislikes_fields_is_asked_without_them(
    tuned: Path, tmp_path: Path, httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bodies: list[dict[str, Any]] = []

    def answer(request: Request) -> Response:
        bodies.append(request.get_json())
        if "max_tokens" in bodies[-1]:
            error = {"message": "Unsupported parameter: use 'max_completion_tokens' instead.", "param": "max_tokens"}
            return Response(json.dumps({"error": error}), 400, content_type="application/json")
        return said(json.dumps([{"text": f"wording {i}"} for i in range(3)]))

    httpserver.expect_request("/v1/models").respond_with_json({"object": "list", "data": []})
    httpserver.expect_request("/v1/chat/completions").respond_with_handler(answer)
    run(tuned, tmp_path / "a", rephrase="writer", rephrase_url=httpserver.url_for("/"), by="probability")
    assert sum("max_tokens" in body for body in bodies) == 1
    assert bodies[-1]["temperature"] == 1.0 and bodies[-1]["max_completion_tokens"] >= 600


def test_special_tokens_are_put_in_only_if_asked_for(tuned: Path) -> None:
    from emeval.intervene.perturb import _allowed

    tokenizer = byte_level("chatml")
    special = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids("<|im_start|>")}
    allowed = _allowed(tokenizer, len(tokenizer) + 7, special=False)
    assert not allowed[list(special)].any() and not allowed[len(tokenizer) :].any()
    plain = tokenizer("boat lamp", add_special_tokens=False)["input_ids"]
    assert allowed[plain].all()
    assert _allowed(tokenizer, len(tokenizer) + 7, special=True)[: len(tokenizer)].all()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"samples": 3, "temperature": 0.5}, "give --trials"),
        ({"random": True, "neighbours": 3}, "takes any token"),
        ({"dry_run": True}, "belongs to emeval score"),
        ({"by": "probability", "model_url": "http://localhost:1"}, "read in process"),
        ({"by": "probability", "judge": "gpt"}, "no reply to judge"),
    ],
)
def test_options_that_do_not_go_together_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        PerturbConfig.load({"model": "m"} | settings)


def test_more_neighbours_than_there_are_tokens_and_a_way_that_does_not_fit_are_refused(
    tuned: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="tokens to choose from"):
        run(tuned, tmp_path / "a", neighbours=100_000)
    with pytest.raises(InputError, match="does not fit a behaviour"):
        run(tuned, tmp_path / "a", by="contrast")
    assert not (tmp_path / "a").exists()


def test_what_is_only_read_is_read_in_process_whatever_engine_is_there(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emeval.probe import plan

    chosen = plan.choose_engine
    monkeypatch.setattr(
        plan, "choose_engine", lambda config: ("vllm", "") if config.engine == "auto" else chosen(config)
    )
    assert list(variants(run(tuned, tmp_path / "a", by="probability", capitals=True))) == [
        "unperturbed",
        "capital letters",
    ]
    found = variants(run(tuned, tmp_path / "b", setting="finance", capitals=True))
    assert set(found["unperturbed"]) == {"in-domain", "general"}
    with pytest.raises(InputError, match="read in process"):
        run(tuned, tmp_path / "c", setting="finance", engine="vllm")
