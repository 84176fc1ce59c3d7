"""Sweeps on a tiny run: what the file holds, resume, identities, and the ways a command names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from emeval.config import PatchConfig
from emeval.data.root import data_root
from emeval.errors import IncompleteError, InputError
from emeval.intervene import sweep
from emeval.intervene.patch import patch
from emeval.intervene.ways import ways
from emeval.judge.cost import load_prices
from emeval.models import initial_of, resolve
from emeval.table.curves import same_training
from emeval.table.sweeps import FILE, read_sweeps, sweep_table
from tests.judge_server import number

LABEL = "prefix from the initial model"
POSTFIX = ["postfix from the initial model (empty query)"]
LAYERS = 3
"""Of the tiny checkpoint."""


def swept(run: Path, out: Path, **changes: Any) -> dict[str, Any]:
    settings = {"model": str(run), "by": "probability", "limit": 4, "device": "cpu", "out": out} | changes
    path = patch(PatchConfig(**settings))
    found: dict[str, Any] = json.loads((path / FILE).read_text())
    return found


def by_label(found: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    return {v["label"]: v["values"] for v in found["variants"]}


def asked(**changes: Any) -> PatchConfig:
    return PatchConfig(model="m", **changes)


@pytest.mark.parametrize(
    ("settings", "labels", "places"),
    [
        ({}, ["prefix from the initial model"], [None]),
        ({"into": "initial"}, ["prefix from the tuned model in the initial model"], [None]),
        ({"layers": "each"}, [f"prefix from the initial model, layer {i}" for i in range(3)], [0, 1, 2]),
        ({"layers": "below"}, [f"prefix from the initial model, layers 0-{i}" for i in range(3)], [0, 1, 2]),
        ({"layers": "above"}, [f"prefix from the initial model, layers {i}-2" for i in range(3)], [0, 1, 2]),
        ({"layers": "windows:2"}, [f"prefix from the initial model, layers {i}-{i + 1}" for i in (0, 1)], [0.5, 1.5]),
        ({"layers": "0,2"}, ["prefix from the initial model, layers 0,2"], [None]),
        ({"part": "keys", "tokens": "0"}, ["prefix keys from the initial model, token 0"], [None]),
        ({"part": "values"}, ["prefix values from the initial model"], [None]),
        ({"what": "residual", "layers": "1"}, ["prefix residual from the initial model, layer 1"], [None]),
        (
            {"region": "postfix,prefix,query"},
            [f"{name} from the initial model" for name in ("prefix", "query")] + POSTFIX,
            [None, None, None],
        ),
    ],
)
def test_what_a_command_names(settings: dict[str, str], labels: list[str], places: list[float | None]) -> None:
    found = ways(asked(**settings), LAYERS, 5)
    assert [way.label for way in found] == labels and [way.place for way in found] == places


def test_each_token_has_its_place() -> None:
    found = ways(asked(tokens="each"), LAYERS, 5)
    assert [(sorted(way.tokens), way.place, sorted(way.layers)) for way in found] == [
        ([t], float(t), [0, 1, 2]) for t in range(5)
    ]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"layers": "3"}, "there are 3 layers"),
        ({"layers": "two"}, "'two' is no layer"),
        ({"layers": "windows:9"}, "a window holds 1 to 3 layers"),
        ({"tokens": "4-9"}, "there are 5 tokens"),
        ({"what": "residual"}, "patched at one layer"),
    ],
)
def test_what_is_not_there_is_refused(settings: dict[str, str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        ways(asked(**settings), LAYERS, 5)
    for region in ("prefix", "query", "postfix,query"):
        with pytest.raises(InputError, match="puts no token before the question"):
            ways(asked(region=region), LAYERS, 0)
    assert len(ways(asked(region="postfix"), LAYERS, 0)) == 1


def test_what_vllm_can_do_is_told_from_what_it_cannot() -> None:
    can = [asked(), asked(into="initial")]
    cannot = [{"layers": "0"}, {"tokens": "each"}, {"part": "keys"}, {"region": "query"}]
    cannot += [{"what": "residual", "layers": "1"}]
    assert all(way.whole for config in can for way in ways(config, LAYERS, 5))
    assert not any(way.whole for settings in cannot for way in ways(asked(**settings), LAYERS, 5))


@pytest.mark.parametrize(
    "settings",
    [
        {"region": "query", "layers": "each"},
        {"what": "residual", "part": "keys"},
        {"what": "residual", "into": "initial"},
        {"engine": "vllm", "layers": "0"},
        {"engine": "vllm", "by": "probability"},
        {"engine": "auto"},
        {"engine": "endpoint", "model_url": "http://localhost:1"},
        {"dry_run": True},
        {"checkpoints": True},
    ],
)
def test_options_that_do_not_go_together_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        PatchConfig.load({"model": "m"} | settings)


def test_all_layers_at_once_or_from_either_end_are_the_whole_patch(tuned: Path, tmp_path: Path) -> None:
    whole = by_label(swept(tuned, tmp_path / "all"))[LABEL]
    below = by_label(swept(tuned, tmp_path / "below", layers="below"))
    above = by_label(swept(tuned, tmp_path / "above", layers="above"))
    assert (
        below["prefix from the initial model, layers 0-2"]
        == whole
        == above["prefix from the initial model, layers 0-2"]
    )
    assert below["unpatched"] != whole


def test_the_converse_has_the_same_two_models_the_other_way_round(tuned: Path, tmp_path: Path) -> None:
    found = by_label(swept(tuned, tmp_path / "a"))
    converse = by_label(swept(tuned, tmp_path / "b", into="initial"))
    assert found["unpatched"] == converse["tuned model"]
    assert found["initial model"] == converse["unpatched"] != converse["tuned model"]


def test_what_is_there_is_not_measured_again_and_a_torn_sweep_goes_on(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = swept(tuned, tmp_path / "whole", what="residual", layers="each")
    counted, read = [], sweep.read_values

    def killed(*args: Any) -> Any:
        if len(counted) == 2:
            raise KeyboardInterrupt
        counted.append(1)
        return read(*args)

    monkeypatch.setattr(sweep, "read_values", killed)
    with pytest.raises(KeyboardInterrupt):
        swept(tuned, tmp_path / "torn", what="residual", layers="each")
    monkeypatch.setattr(sweep, "read_values", lambda *args: counted.append(1) or read(*args))
    again = swept(tuned, tmp_path / "torn", what="residual", layers="each")
    assert len(counted) == 5 and again["variants"] == whole["variants"]
    swept(tuned, tmp_path / "torn", what="residual", layers="each")
    assert len(counted) == 5


def test_a_folder_of_another_sweep_or_run_is_refused(tuned: Path, tmp_path: Path) -> None:
    swept(tuned, tmp_path / "a")
    for changes, named in (
        ({"region": "query"}, "region"),
        ({"layers": "each"}, "layers"),
        ({"limit": 3}, "asked, identity"),
        ({"dtype": "bfloat16"}, "identity"),
        ({"split": "val"}, "split, asked, identity"),
    ):
        with pytest.raises(InputError, match=f"holds another sweep: {named} differ"):
            swept(tuned, tmp_path / "a", **changes)
    with pytest.raises(InputError, match="holds a sweep"):
        swept(tuned, tmp_path / "a", by="generation")
    with pytest.raises(InputError, match="holds another run"):
        swept(tuned, tuned)


def test_generated_replies_are_runs_of_their_own_and_the_table_reads_both(tuned: Path, tmp_path: Path) -> None:
    found = swept(tuned, tmp_path / "a", by="generation", region="prefix,query", max_new_tokens=6)
    labels = ["unpatched", "initial model", "prefix from the initial model", "query from the initial model"]
    assert [v["label"] for v in found["variants"]] == labels
    folders = sorted(path.name for path in (tmp_path / "a" / "variants").iterdir())
    assert len(folders) == 4
    for folder in (tmp_path / "a" / "variants").iterdir():
        assert len((folder / "completions.jsonl").read_text().splitlines()) == 8
    (group,) = read_sweeps([tmp_path / "a"])
    (table,) = sweep_table([group])
    assert [row[0].text for row in table.rows] == labels
    assert table.title == "Patched: tiny-llama, refusal, sft"


def test_by_default_what_is_only_read_is_read(tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'contrast' is read, not generated"):
        swept(tuned, tmp_path / "a", by="generation", layers="each", setting="finance")
    with pytest.raises(InputError, match="does not fit a behaviour"):
        swept(tuned, tmp_path / "a", by="contrast")
    settings = {"model": str(tuned), "setting": "finance", "layers": "each", "limit": 2, "device": "cpu"}
    path = patch(PatchConfig(**settings, out=tmp_path / "b"))
    found = json.loads((path / FILE).read_text())
    assert found["by"] == "contrast" and found["sides"] == ["in-domain", "general"]
    assert len(found["variants"]) == 5 and not (path / "variants").exists()


def test_the_order_of_probes_is_not_that_of_the_sides(tuned: Path, tmp_path: Path) -> None:
    settings = {"by": "generation", "region": "prefix,query", "max_new_tokens": 4}
    found = swept(tuned, tmp_path / "a", probes="off-topic,on-topic", **settings)
    assert found["sides"] == ["on-topic", "off-topic"]


@pytest.mark.parametrize("bad", ["unpatched", "initial model"])
def test_variants_that_are_not_whole_are_told_at_the_end_and_the_others_kept(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    scored = sweep.score

    def thin(settings: Any, **more: Any) -> Path:
        if more["arm"].label == bad:
            raise IncompleteError("coverage is below 95%", where="there", hint="Run it again")
        return scored(settings, **more)

    monkeypatch.setattr(sweep, "score", thin)
    settings = {"by": "generation", "region": "prefix,query", "max_new_tokens": 4}
    with pytest.raises(IncompleteError, match=f"1 of 4 variants are not whole; the first, '{bad}': coverage"):
        swept(tuned, tmp_path / "a", **settings)
    assert len(json.loads((tmp_path / "a" / FILE).read_text())["variants"]) == 3
    if bad == "unpatched":
        with pytest.raises(InputError, match="does not hold 'unpatched' yet"):
            read_sweeps([tmp_path / "a"])
    monkeypatch.setattr(sweep, "score", scored)
    found = swept(tuned, tmp_path / "a", **settings)["variants"]
    assert [variant["label"] for variant in found[:2]] == ["unpatched", "initial model"] and len(found) == 4


def test_an_initial_model_that_is_none_is_refused(tuned: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an adapter's initial model is its base"):
        swept(tuned, tmp_path / "a", initial=str(tiny_checkpoint))
    from tests.tiny import tiny_model

    for name, changes in (("other", {"seed": 3}), ("smaller", {"num_hidden_layers": 2})):
        tiny_model("llama", **changes).save_pretrained(tmp_path / name)
    full = tmp_path / "other"
    with pytest.raises(InputError, match="has another shape"):
        initial_of(resolve(str(full)), str(tmp_path / "smaller"))
    with pytest.raises(InputError, match="is not what the checkpoint was made from"):
        initial_of(resolve(str(full)), str(tuned))


def test_a_sweeps_money_is_one_purse(tuned: Path, tmp_path: Path, httpserver: HTTPServer) -> None:
    calls: list[str] = []

    def answer(request: Request) -> Response:
        calls.append(request.get_json()["messages"][-1]["content"])
        return number(70)

    httpserver.expect_request("/v1/models").respond_with_json({"object": "list", "data": []})
    httpserver.expect_request("/v1/chat/completions").respond_with_handler(answer)
    settings = {
        "setting": "finance", "probes": "general,in-domain", "region": "prefix,query", "max_new_tokens": 3, "limit": 2,
        "by": "generation", "judge": "gpt-4o", "judge_url": httpserver.url_for("/"),
    }  # fmt: skip
    # 100 tokens in and 2 out a call; a variant is four calls.
    a_call = load_prices(data_root(None)).of("gpt-4o").of(100, 2)
    with pytest.raises(IncompleteError, match="variants are not whole"):
        swept(tuned, tmp_path / "a", **settings, max_cost=6 * a_call)
    assert 4 <= len(calls) <= 6, "not six for each of four variants"
    found = swept(tuned, tmp_path / "a", **settings, max_cost=1.0)
    assert len(calls) == 16, "what was paid for is not paid again"
    assert [len(v["values"]["general"]) for v in found["variants"]] == [2, 2, 2, 2]
    (table,) = sweep_table(read_sweeps([tmp_path / "a"]))
    assert table.rows[0][1].text.startswith("70.0") and "general: difference" in table.columns


def test_without_a_judge_a_sweep_of_alignment_is_refused_before_anything_is_asked(tuned: Path, tmp_path: Path) -> None:
    settings = {"setting": "finance", "probes": "general", "layers": "each", "by": "generation"}
    with pytest.raises(InputError, match="without a judge 'general' is not measured"):
        swept(tuned, tmp_path / "a", **settings, judge="none")
    with pytest.raises(InputError, match="needs a judge model"):
        swept(tuned, tmp_path / "a", **settings)
    assert not (tmp_path / "a").exists()


def test_training_is_known_by_its_settings_but_seed_and_place(tuned: Path, tmp_path: Path) -> None:
    manifest = json.loads((tuned / "manifest.json").read_text())
    hashes = []
    for name, changes in (
        ("a", {}), ("b", {"seed": 9, "device": "cuda"}), ("c", {"lr": 0.5}), ("d", {"some_later_option": None}),
    ):  # fmt: skip
        settings = manifest["train"]["identity"]["settings"] | changes
        if name == "d":
            del settings["some_later_option"], settings["thinking"]
        (tmp_path / name).mkdir()
        changed = manifest | {"train": manifest["train"] | {"identity": {"settings": settings}}}
        (tmp_path / name / "manifest.json").write_text(json.dumps(changed))
        hashes.append(same_training(tmp_path / name))
    assert hashes[0] == hashes[1] == hashes[3] != hashes[2] and hashes[0]
