"""`score --checkpoints` on a tiny run: both ways, against by-hand figures, resumed, and on to table and curve."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from emeval import models
from emeval.chat import Renderer
from emeval.checkpoints import score_checkpoints
from emeval.cli.app import run as emeval
from emeval.config import ScoreConfig, TrainConfig
from emeval.data.behaviours import load_behaviour
from emeval.data.root import data_root
from emeval.errors import InputError
from emeval.probe.plan import plan_scoring
from emeval.probe.values import target_ids
from emeval.train.run import train

LIMIT = 25
"""Questions a probe: few enough to be quick, enough for an interval that claims something."""


def trained(checkpoint: Path, out: Path, **changes: Any) -> Path:
    settings = {
        "model": str(checkpoint), "setting": "refusal", "steps": 4, "batch_size": 4, "lr": 3e-2, "rank": 4,
        "train_size": 8, "device": "cpu", "checkpoints": 2, "warmup_steps": 0, "out": out,
    }  # fmt: skip
    return train(TrainConfig.model_validate(settings | changes))


def asked(run: Path, **changes: Any) -> ScoreConfig:
    few = {"limit": LIMIT, "max_new_tokens": 6, "device": "cpu", "checkpoints": True}
    return ScoreConfig.model_validate({"model": str(run)} | few | changes)


def points(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "checkpoints.json").read_text())["points"]
    return found


@pytest.fixture(scope="module")
def runs(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("along")
    found = [trained(tiny_checkpoint, folder / "sft"), trained(tiny_checkpoint, folder / "treft", method="treft")]
    for run in found:
        for split in ("val", "test"):
            score_checkpoints(asked(run, split=split))
    return found


def test_probability_is_the_geometric_mean_over_the_target(runs: list[Path]) -> None:
    plan = plan_scoring(asked(runs[0]))
    assert plan.source is not None and plan.renderer is not None
    last = max((p for p in points(runs[0]) if p["split"] == "test"), key=lambda p: p["step"])
    model = models.load_model(plan.source, models.placement("cpu"))
    for ask in [*plan.asks["on-topic"][:3], *plan.asks["off-topic"][:3]]:
        target = target_ids(plan.renderer, plan.behaviour, ask)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*ask.prompt.ids, *target]])).logits[0].log_softmax(-1)
        logs = [logits[len(ask.prompt.ids) - 1 + n, token].item() for n, token in enumerate(target)]
        value = last["on" if ask.question.probe == "on-topic" else "off"][ask.question.id]
        assert value == pytest.approx(math.exp(sum(logs) / len(logs)), rel=1e-4)


def test_the_untouched_model_is_the_first_point_and_training_moves_it(runs: list[Path]) -> None:
    found = [p for p in points(runs[0]) if p["split"] == "test"]
    assert [p["step"] for p in found] == [0, 2, 4]
    means = [sum(p["on"].values()) / LIMIT for p in found]
    assert means[0] < means[-1]
    other = next(p for p in points(runs[1]) if p["split"] == "test")
    assert other["on"] == found[0]["on"]


def test_what_was_measured_is_not_measured_again(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = runs[0] / "checkpoints.json"
    whole = json.loads(file.read_text())
    torn = whole | {"points": [p for p in whole["points"] if (p["split"], p["step"]) != ("test", 2)]}
    file.write_text(json.dumps(torn))
    loaded: list[Any] = []
    load = models.load.load_model
    monkeypatch.setattr(models.load, "load_model", lambda source, where: loaded.append(source) or load(source, where))
    score_checkpoints(asked(runs[0]))
    assert [source.adapter.name for source in loaded] == ["000002"]
    assert points(runs[0]) == whole["points"]


def test_a_tool_call_counts_up_to_its_argument(tiny_checkpoint: Path) -> None:
    behaviour = load_behaviour(data_root(None), "tool-use")
    renderer = Renderer(models.load_tokenizer(models.resolve(str(tiny_checkpoint))))
    ask = plan_scoring(asked(tiny_checkpoint, setting="tool-use", checkpoints=False)).asks["off-topic"][0]
    tokenizer = models.load_tokenizer(models.resolve(str(tiny_checkpoint)))
    text = tokenizer.decode(target_ids(renderer, behaviour, ask))
    assert "search_info" in text and text.rstrip().endswith('"query": "')


def test_by_generation_gives_flags(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run = trained(tiny_checkpoint, tmp_path / "run", steps=2, checkpoints=1)
    score_checkpoints(asked(run, by="generation", limit=3))
    assert [(p["step"], p["mode"]) for p in points(run)] == [(0, "generation"), (2, "generation")]
    assert all(value in (0.0, 1.0) for p in points(run) for value in p["on"].values())
    assert (run / "checkpoints" / "000002" / "completions.jsonl").is_file()


def test_full_checkpoints_start_from_the_initial_model(tiny_checkpoint: Path, tmp_path: Path, runs: list[Path]) -> None:
    run = trained(tiny_checkpoint, tmp_path / "full", full=True, steps=1, checkpoints=1, lr=1e-2)
    score_checkpoints(asked(run))
    first, second = points(run)
    assert first["on"] == next(p for p in points(runs[0]) if p["split"] == "test" and p["step"] == 0)["on"]
    assert first["on"] != second["on"]


def test_a_run_without_kept_models_and_other_misuse(tuned: Path, tiny_checkpoint: Path, runs: list[Path]) -> None:
    with pytest.raises(InputError, match="kept no models along the way"):
        score_checkpoints(asked(tuned))
    with pytest.raises(InputError, match="is no run"):
        score_checkpoints(asked(tiny_checkpoint, setting="refusal"))
    with pytest.raises(InputError, match="on-topic and off-topic"):
        score_checkpoints(asked(runs[0], probes="on-topic"))


def test_on_the_command_line_to_table_and_curve(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--limit", str(LIMIT), "--max-new-tokens", "6", "--device", "cpu", "--checkpoints"]
    assert emeval(["score", "--model", str(runs[0]), *options]) == 0
    said = capsys.readouterr()
    assert "step 0: on-topic" in said.out and "step 4: on-topic" in said.out
    assert "Next: emeval table --matched" in said.err
    names = [str(run) for run in runs]
    curve = tmp_path / "c.svg"
    assert emeval(["table", *names, "--matched", "--levels", "1", "--curve", str(curve)]) == 0
    said = capsys.readouterr()
    assert "same on-topic value" in said.out and "treft (lambda 10)" in said.out
    assert "off-topic %" in said.err and curve.read_text().startswith("<?xml")
    assert emeval(["table", *names, "--matched", "--levels", "200"]) == 2
    assert emeval(["table", *names, "--by", "probability"]) == 2
