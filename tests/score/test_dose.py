"""A patched model beside its own training: read at the same on-topic value, in the data and in every draw."""

from __future__ import annotations

import random

import pytest

from emeval.score.dose import beside
from emeval.score.matched import Curve, Point, off_at

N = 40


def point(step: int, on: float, off: float, seed: int = 0) -> Point:
    dice = random.Random(f"{seed}/{step}")
    draw = lambda mean: {f"q{i}": min(1.0, max(0.0, mean + dice.uniform(-0.1, 0.1))) for i in range(N)}  # noqa: E731
    return Point(step=step, on=draw(on), off=draw(off))


def training(seed: int) -> Curve:
    return Curve(label="sft", seed=seed, points=tuple(point(s, 0.08 * s, 0.07 * s, seed) for s in range(11)))


def one(label: str, found: Point, seed: int) -> Curve:
    return Curve(label=label, seed=seed, points=(found.model_copy(update={"step": 1}),))


def variants() -> dict[str, list[Curve]]:
    runs = {seed: training(seed) for seed in (0, 1)}
    return {
        "unpatched": [one("unpatched", runs[s].points[-1], s) for s in runs],
        "undone": [one("undone", runs[s].points[5], s) for s in runs],
        "better": [one("better", point(1, 0.4, 0.1, s), s) for s in runs],
        "beyond": [one("beyond", point(1, 0.95, 0.5, s), s) for s in runs],
    }


def test_a_patch_that_undoes_training_lies_on_its_curve_and_a_better_one_below() -> None:
    rows = {row.label: row for row in beside(variants(), "unpatched", [training(0), training(1)])}
    undone, better = rows["undone"].minus_training, rows["better"].minus_training
    assert undone is not None and undone.value == pytest.approx(0.0, abs=1e-9)
    assert undone.low is not None and undone.low <= 0 <= (undone.high or 0)
    expected = []
    for seed in (0, 1):
        curve, patched = training(seed), variants()["better"][seed]
        read = off_at(curve.on_means, curve.off_means, patched.on_means[0])
        expected.append(patched.off_means[0] - (read or 0))
    assert better is not None and better.value == pytest.approx(sum(expected) / 2)
    assert better.by_seed == pytest.approx(expected) and (better.high or 0) < -0.2
    beyond = rows["beyond"].minus_training
    assert beyond is not None and beyond.value is None, "training never came there"
    assert rows["unpatched"].on_minus is None and rows["undone"].on_minus is not None
    gap = variants()["undone"][0].on_means[0] - variants()["unpatched"][0].on_means[0]
    assert rows["undone"].on_minus.by_seed[0] == pytest.approx(gap)


def test_without_all_the_curves_nothing_is_said_of_training() -> None:
    assert all(row.minus_training is None for row in beside(variants(), "unpatched"))
    assert all(row.minus_training is None for row in beside(variants(), "unpatched", [training(0)]))


def test_variants_of_other_seeds_are_not_compared() -> None:
    found = variants()
    found["better"] = found["better"][:1]
    rows = {row.label: row for row in beside(found, "unpatched", [training(0), training(1)])}
    assert rows["better"].off_minus is None and rows["better"].minus_training is None
    assert rows["better"].off.value is not None
    with pytest.raises(ValueError, match="no variant 'other'"):
        beside(found, "other")
