"""Sweeps as tables and figures: seeds together, training beside them, and what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emeval.errors import InputError
from emeval.table.render import render
from emeval.table.sweep_plots import sweep_lines, sweep_plot
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
            "family": None if i < 2 else "prefix residual, layers each",
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
    assert alone.title.endswith("mean of seeds 0, 1") and "minus training" not in alone.columns
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


def changed(folder: Path, **changes: Any) -> Path:
    value = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps(value | changes))
    return folder


def test_values_that_are_no_shares_are_told_as_they_were_estimated_with_paired_differences(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", 0, by="generation", sides=["general"])
    estimate = {"low": 60.0, "high": 82.0, "n": 9, "method": "t"}
    variants = [
        {"label": label, "values": {"general": {"q1": 71.0 + i, "q2": 50.0 + 2 * i}},
         "measures": {"general": {"alignment": estimate | {"value": 60.5 + 1.5 * i}}}}
        for i, label in enumerate(("unpatched", "patched"))
    ]  # fmt: skip
    (table,) = sweep_table(read_sweeps([changed(folder, variants=variants)]))
    assert table.columns == ("Variant", "general: alignment", "general: difference")
    assert table.rows[1][1].text == "62.0 [60.0, 82.0]" and table.rows[1][2].text.startswith("+1.5 [")
    assert table.records[1]["general: difference"] == pytest.approx(1.5)


def test_the_order_of_probes_decides_nothing_and_other_probes_are_no_sides(tmp_path: Path) -> None:
    swapped = write(tmp_path / "a", 0, sides=["off-topic", "on-topic"])
    (group,) = read_sweeps([swapped])
    assert not group.rows, "only on-topic before off-topic is what training is known by"


def test_sweeps_of_one_model_stand_in_one_table_unless_they_disagree(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a", 0), write(tmp_path / "b", 0)
    value = json.loads((two / "sweep.json").read_text())
    for variant in value["variants"][2:]:
        variant["label"] = variant["label"].replace("residual", "keys")
        variant["family"] = "prefix keys, layers each"
    changed(two, variants=value["variants"], what="kv")
    (group,) = read_sweeps([one, two])
    assert len(group.rows) == 10 and [row.label for row in group.rows[:2]] == ["unpatched", "initial model"]
    sweep_plot(group, tmp_path / "both.svg")
    value["variants"][0]["values"]["on-topic"]["q0"] = 0.123
    changed(two, variants=value["variants"])
    assert [len(group.rows) for group in read_sweeps([one, two])] == [6, 6], "no mean is taken of what is at odds"


def test_other_questions_or_training_are_tables_of_their_own(tmp_path: Path) -> None:
    folders = [write(tmp_path / "a", 0, training="x"), write(tmp_path / "b", 1, training="y")]
    assert len(read_sweeps(folders)) == 2
    fewer = write(tmp_path / "c", 2, training="x")
    value = json.loads((fewer / "sweep.json").read_text())
    for variant in value["variants"]:
        for values_ in variant["values"].values():
            del values_["q4"]
    changed(fewer, variants=value["variants"])
    assert len(read_sweeps([*folders, fewer])) == 3


def test_training_that_cannot_be_read_is_told_and_hides_nothing(tmp_path: Path) -> None:
    sweep = write(tmp_path / "a", 0, by="generation")
    (table,) = sweep_table(read_sweeps([sweep, trained(tmp_path / "t", 0)]))
    assert "minus training" not in table.columns
    assert any("no generation points" in note for note in table.notes)


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
        sweep_plot(group, tmp_path / name)
        first = (tmp_path / name).read_bytes()
        sweep_plot(group, tmp_path / name)
        assert (tmp_path / name).read_bytes() == first
    field = [line[5:] for line in sweep_lines(group).splitlines() if "|" in line[:6]]
    assert sum(line.count("o") for line in field) == 4 and sum(line.count("x") for line in field) == 4
    assert any(set(line) >= {"-"} for line in field) and max(map(len, field)) <= 72
    assert "layer" in sweep_lines(group).splitlines()[-2]
    value = json.loads((tmp_path / "a" / "sweep.json").read_text())
    for variant in value["variants"]:
        variant["axis"] = "prefix token"
    (by_token,) = read_sweeps([changed(tmp_path / "a", variants=value["variants"])])
    assert "prefix token" in sweep_lines(by_token).splitlines()[-2]
    with pytest.raises(InputError, match=r"\.svg or a \.png"):
        sweep_plot(group, tmp_path / "x.pdf")
    with pytest.raises(ValueError, match="too small"):
        sweep_lines(group, width=10)


def test_variants_without_an_axis_are_marks_and_bars_whatever_they_are_called(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", 0)
    value = json.loads((folder / "sweep.json").read_text())
    for variant in value["variants"]:
        variant["place"] = None
    value["variants"][3]["label"] = r"_hidden $\frac$"
    (group,) = read_sweeps([changed(folder, variants=value["variants"])])
    sweep_plot(group, tmp_path / "x.png")
    text = sweep_lines(group)
    assert text.count("\n") == 3 * 6 and r"$\frac$" in text
    bars = [line for line in text.splitlines() if line.startswith("  o") and line.endswith("80.0")]
    assert len(bars) == 1, "the longest bar is the unpatched model's"


def test_values_that_are_no_shares_are_not_drawn(tmp_path: Path) -> None:
    (group,) = read_sweeps([write(tmp_path / "a", 0, by="generation", sides=["general"])])
    with pytest.raises(InputError, match="cannot be drawn"):
        sweep_plot(group, tmp_path / "y.svg")
