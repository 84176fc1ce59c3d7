"""Sweeps as tables and figures: seeds together, training beside them, and what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emeval.errors import InputError
from emeval.table.render import render
from emeval.table.sweep_plots import layer_lines, layer_plot
from emeval.table.sweeps import read_sweeps, sweep_table

TRAIN = {"method": "sft", "setting": "refusal", "model": "base"}


def values(mean: float) -> dict[str, float]:
    return {f"q{n}": mean + 0.02 * n - 0.04 for n in range(5)}


def write(folder: Path, seed: int, by: str = "probability", **changes: Any) -> Path:
    labels = ["unpatched", "initial model", *(f"prefix residual from the initial model, layer {i}" for i in range(4))]
    variants = [
        {
            "label": label,
            "place": None if i < 2 else i - 2,
            "values": {"on-topic": values(0.8 - 0.1 * i), "off-topic": values((0.8 - 0.1 * i) / 2)},
            "estimates": {},
        }
        for i, label in enumerate(labels)
    ]  # fmt: skip
    value = {
        "schema_version": 1, "setting": "refusal", "model": {"id": "m", "train": TRAIN | {"seed": seed}},
        "what": "residual", "region": "prefix", "into": "tuned", "by": by, "split": "test",
        "sides": ["on-topic", "off-topic"], "variants": variants,
    } | changes  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps(value))
    return folder


def trained(folder: Path, seed: int) -> Path:
    points = [
        {"step": s, "split": "test", "mode": "probability", "measured": "x",
         "on": {f"q{n}": 0.09 * s for n in range(5)}, "off": {f"q{n}": 0.05 * s for n in range(5)}}
        for s in range(11)
    ]  # fmt: skip
    folder.mkdir(parents=True)
    value = {"schema_version": 1, "setting": "refusal", "model": {"id": "m", "train": TRAIN | {"seed": seed}}}
    (folder / "checkpoints.json").write_text(json.dumps(value | {"points": points}))
    (folder / "manifest.json").write_text(json.dumps({"schema_version": 1, "train": TRAIN | {"seed": seed}}))
    return folder


def test_seeds_are_one_table_and_training_stands_beside(tmp_path: Path) -> None:
    sweeps = [write(tmp_path / f"s{seed}", seed) for seed in (0, 1)]
    (alone,) = sweep_table(read_sweeps(sweeps))
    assert "2 seeds" in alone.title and "minus training" not in alone.columns
    runs = [trained(tmp_path / f"t{seed}", seed) for seed in (0, 1)]
    (table,) = sweep_table(read_sweeps([*sweeps, *runs]))
    assert table.columns[-1] == "minus training" and table.rows[0][0].text == "unpatched"
    record = next(r for r in table.records if r["variant"].endswith("layer 0"))
    assert record["on"] == pytest.approx(0.6) and record["off"] == pytest.approx(0.3)
    assert record["minus_training"] == pytest.approx(0.3 - 0.6 * 5 / 9)
    assert record["place"] == 0 and record["seeds"] == 2
    assert "| unpatched " in render([table]) and json.loads(render([table], "json"))


def test_other_models_and_ways_are_tables_of_their_own(tmp_path: Path) -> None:
    other = TRAIN | {"method": "treft", "lambda": 3.0, "seed": 0}
    folders = [
        write(tmp_path / "a", 0),
        write(tmp_path / "b", 0, model={"id": "m", "train": other}),
        write(tmp_path / "c", 0, by="generation"),
    ]
    assert len(read_sweeps(folders)) == 3


def test_values_that_are_no_shares_are_told_as_they_were_estimated(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", 0, by="generation", sides=["general"])
    value = json.loads((folder / "sweep.json").read_text())
    for variant in value["variants"]:
        variant["values"] = {"general": {"q1": 71.0}}
        variant["estimates"] = {"general": {"value": 71.0, "low": 60.0, "high": 82.0, "n": 9, "method": "t"}}
    (folder / "sweep.json").write_text(json.dumps(value))
    (table,) = sweep_table(read_sweeps([folder]))
    assert table.rows[0][1].text == "71.0 [60.0, 82.0]"


def test_what_holds_no_sweep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds neither sweep\.json nor checkpoints\.json"):
        read_sweeps([tmp_path / "empty"])
    with pytest.raises(InputError, match="none of these folders holds a sweep"):
        read_sweeps([trained(tmp_path / "t", 0)])
    broken = write(tmp_path / "b", 0, what="magic")
    with pytest.raises(InputError, match="field 'what'"):
        read_sweeps([broken])


def test_figure_and_characters(tmp_path: Path) -> None:
    (group,) = read_sweeps([write(tmp_path / "a", 0)])
    for name in ("x.svg", "x.png"):
        layer_plot(group, tmp_path / name)
        first = (tmp_path / name).read_bytes()
        layer_plot(group, tmp_path / name)
        assert (tmp_path / name).read_bytes() == first
    text = layer_lines(group)
    assert text.count("o") >= 4 and "layer" in text and max(map(len, text.splitlines())) <= 80
    with pytest.raises(InputError, match=r"\.svg or a \.png"):
        layer_plot(group, tmp_path / "x.pdf")
    with pytest.raises(ValueError, match="too small"):
        layer_lines(group, width=10)
    few = json.loads((tmp_path / "a" / "sweep.json").read_text())
    few["variants"] = few["variants"][:4]
    (tmp_path / "a" / "sweep.json").write_text(json.dumps(few))
    (group,) = read_sweeps([tmp_path / "a"])
    with pytest.raises(InputError, match="too few variants"):
        layer_plot(group, tmp_path / "y.svg")
