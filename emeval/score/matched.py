"""Methods compared at the SAME on-topic rate (DESIGN decision 8), since what learns less leaks less.

A run scored at its checkpoints is a path through the plane of on-topic and off-topic rate. A method is read where that
path first reaches a given on-topic level. The error comes from a bootstrap over questions in which the whole reading,
crossing and interpolation included, is done again in every draw, with the same draws for all methods and seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import Field, field_validator

from emeval.score.stats import over_seeds, wilson
from emeval.types import Estimate, Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MATCHED = "bootstrap-matched"
BOOTSTRAP = "bootstrap"
LEVELS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""On-topic rates that `choose_level` chooses among."""

LEVELS_OF_PROBABILITY = tuple(n / 20 for n in range(4, 20))
"""The same for probabilities of the target, which stay below rates: what was learned is shared among its wordings."""

LEVELS_OF_CONTRAST = tuple(n / 40 for n in range(8, 39))
"""The same for contrast, whose values start near a third and end little above a half: in steps of 2.5 points."""

SIDES = {
    "generation": ("on-topic", "off-topic"),
    "probability": ("on-topic", "off-topic"),
    "contrast": ("in-domain", "general"),
}
"""By way of scoring, what the questions are called: those whose behaviour was to be learned, and the others."""

OPEN_SHARE = 0.05
"""An interval is open where more than this share of the draws has no crossing: those draws are not in it."""

TOLERANCE = 1e-9
"""A mean of shares such as 1/3 may miss the level it equals by a rounding error; that is a level reached."""

Values = dict[str, Annotated[float, Field(ge=0, le=1)]]


class Point(Record):
    """One checkpoint: by question id a flag, a share of replies, or the probability of the target, from 0 to 1."""

    step: int = Field(ge=0)
    """Optimizer steps taken; 0 is the untouched model."""
    on: Values = Field(min_length=1)
    off: Values = Field(min_length=1)


class Curve(Record):
    """One training run, checkpoint by checkpoint: its points in the order of their steps."""

    label: str
    """The method. Curves of one label differ in their seed only."""
    seed: int | None
    points: tuple[Point, ...] = Field(min_length=1)

    @field_validator("points")
    @classmethod
    def _in_order(cls, points: tuple[Point, ...]) -> tuple[Point, ...]:
        steps = [point.step for point in points]
        if steps != sorted(set(steps)):
            raise ValueError(f"steps must rise from point to point, got {steps}")
        return points

    @property
    def on_means(self) -> tuple[float, ...]:
        """On-topic rate at each point, 0 to 1."""
        return tuple(math.fsum(p.on.values()) / len(p.on) for p in self.points)

    @property
    def off_means(self) -> tuple[float, ...]:
        """Off-topic rate at each point, 0 to 1."""
        return tuple(math.fsum(p.off.values()) / len(p.off) for p in self.points)


class MatchedEstimate(Estimate):
    """A mean over seeds of what was read off their curves, or a difference of two such means.

    `value` is of the full data and None where a seed's curve does not cross the level. `low`..`high` are percentiles
    over the draws: the error from the questions asked, not from the seeds. `n` counts off-topic questions.
    """

    unreached: float = 0.0
    """Share of the draws in which a seed's curve does not cross the level."""
    by_seed: tuple[float | None, ...] = ()
    """The full data's value for each seed (of a difference: for each seed that both methods have)."""

    @property
    def open(self) -> bool:
        """Whether so many draws lie beyond the curves that the interval is that of the others only."""
        return self.unreached > OPEN_SHARE

    @property
    def seeds(self) -> Estimate:
        """Mean and range over the seeds that have a value."""
        return over_seeds(Estimate(value=value, n=1, method=self.method) for value in self.by_seed)


class MatchedRow(Record):
    """One method at one on-topic level. All rates and differences are shares from 0 to 1."""

    label: str
    level: float
    seeds: tuple[int | None, ...]
    off: MatchedEstimate
    """Off-topic at the level."""
    minus: dict[str, MatchedEstimate]
    """This method's off-topic at the level minus that of each other method; below 0 this one leaks less."""
    baseline: str
    """The method that `difference` compares with."""
    end_on: MatchedEstimate
    end_off: MatchedEstimate
    end_minus: dict[str, MatchedEstimate]
    """As `minus`, at the last checkpoint of each run whatever was learned by then."""
    n_on: int
    """On-topic questions; those off-topic are `off.n`."""

    @property
    def difference(self) -> MatchedEstimate | None:
        """This method minus the baseline at the level; None for the baseline itself."""
        return self.minus.get(self.baseline)


class Disagreement(Record):
    """Two methods that stand otherwise at the end of their runs than at the same on-topic level."""

    order_differs: bool
    """True: another method leaks less. False: same order, but only one of the two differences is beyond noise."""
    beyond_noise: bool
    """Whether both differences are."""
    sentence: str


def off_at(on: Sequence[float], off: Sequence[float], level: float) -> float | None:
    """Off-topic rate where training first brings on-topic to `level`, or None ('not reached').

    On-topic is noisy and not monotone. The crossing is the first one: between the first checkpoint at or above the
    level (where the running maximum gets there) and the checkpoint before it, on the straight line between the two.
    What the curve does later, a fall back under the level included, does not count. Nothing is extrapolated: a curve
    that stays below has no value, nor has one that is above from its first checkpoint on.

    A first crossing comes early where noise lifts a checkpoint over the level, the more so the more checkpoints there
    are. In simulations (40 and 60 questions, replies drawn anew at each checkpoint) 24 checkpoints against 6 moved the
    difference of two equal methods by 3 points, equal numbers by 0 to 2: give all methods about as many.

    Args:
        on: On-topic rate at each checkpoint, in the order of training.
        off: Off-topic rate at each checkpoint.
        level: On-topic rate to read at.

    Raises:
        ValueError: The sequences are empty or differ in length.
    """
    import numpy as np

    if len(on) != len(off) or not len(on):
        raise ValueError(f"{len(on)} on-topic and {len(off)} off-topic checkpoints")
    found = float(crossings(np.asarray(on, dtype=float), np.asarray(off, dtype=float), level))
    return None if math.isnan(found) else found


def choose_level(val_curves: Iterable[Curve], levels: Sequence[float] = LEVELS) -> float | None:
    """The highest of `levels` that every curve crosses; None if there is none.

    Args:
        val_curves: Every method and seed to be compared, scored on the validation split. Test questions are for
            reading at the level, not for choosing it.
        levels: On-topic values to choose among, 0 to 1.
    """
    means = [(curve.on_means, curve.off_means) for curve in val_curves]
    shared = (level for level in sorted(levels, reverse=True) if all(off_at(*m, level) is not None for m in means))
    return next(shared, None) if means else None


def on_common_questions(curves_by_method: Mapping[str, Sequence[Curve]]) -> dict[str, list[Curve]]:
    """The curves, cut to the questions that every point of every curve has, so that all rates are of the same ones.

    Raises:
        ValueError: No on-topic or no off-topic question is left.
    """
    points = [point for curves in curves_by_method.values() for curve in curves for point in curve.points]
    on, off = _common(point.on for point in points), _common(point.off for point in points)
    if points and not (on and off):
        raise ValueError(f"the curves have no {'off' if on else 'on'}-topic question in common")

    def cut(curve: Curve) -> Curve:
        kept = (Point(step=p.step, on={q: p.on[q] for q in on}, off={q: p.off[q] for q in off}) for p in curve.points)
        return Curve(label=curve.label, seed=curve.seed, points=tuple(kept))

    return {label: [cut(curve) for curve in curves] for label, curves in curves_by_method.items()}


def matched(
    curves_by_method: Mapping[str, Sequence[Curve]],
    levels: Sequence[float],
    draws: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
    *,
    baseline: str | None = None,
) -> list[MatchedRow]:
    """Off-topic of each method at each on-topic level, with percentile intervals of a bootstrap over questions.

    On- and off-topic questions are drawn independently. A draw holds for all methods and seeds, so differences are
    paired; a method's value is the mean of its seeds' values, in the data and in every draw. A method has a value only
    where all its seeds cross the level: else it would be judged by the seeds that learned best.

    Args:
        curves_by_method: By method, one curve a seed. They are compared on the questions that all of them have.
        levels: On-topic rates, between 0 and 1.
        draws: Bootstrap draws.
        seed: Seed of the draws.
        confidence: Two-sided coverage of the intervals, between 0 and 1.
        baseline: The method that `MatchedRow.difference` compares with. (default: the first)

    Returns:
        A row per level and method, in the order given. No interval from fewer than two questions.

    Raises:
        ValueError: No curves, two of one method and seed, no common questions, an unknown baseline, no draws, or a
            level outside 0-1.

    Source: percentile bootstrap, Efron and Tibshirani (1993), chapter 13.
    """
    if not curves_by_method or not all(curves_by_method.values()):
        raise ValueError("every method needs a curve")
    baseline = baseline or next(iter(curves_by_method))
    if baseline not in curves_by_method:
        raise ValueError(f"the baseline {baseline!r} has no curve")
    if draws < 1 or not all(0 <= level <= 1 for level in levels):
        raise ValueError(f"at least 1 draw and levels between 0 and 1 are needed, got {draws} and {list(levels)}")
    sample = Drawn(on_common_questions(curves_by_method), draws, seed, confidence)
    return [row for level in levels for row in sample.rows(level, baseline)]


def disagrees(
    end_of_run: Estimate, matched: Estimate, names: tuple[str, str] = ("the method", "the baseline")
) -> Disagreement | None:
    """Whether two methods stand otherwise at the end of their runs than at the same on-topic level; None if not.

    Args:
        end_of_run: Difference of the off-topic rates at the end of the runs, first - second, a share.
        matched: The same difference at the level. Where it was not reached there is nothing to disagree with.
        names: The two methods.
    """
    if end_of_run.value is None or matched.value is None:
        return None
    differs = end_of_run.value * matched.value < 0
    clear = (beyond_noise(end_of_run), beyond_noise(matched))
    if not differs and clear[0] == clear[1]:
        return None
    end, here = (
        f"{100 * abs(value):.1f} points {'more' if value > 0 else 'less'} ({'beyond' if sure else 'within'} noise)"
        for value, sure in zip((end_of_run.value, matched.value), clear, strict=True)
    )
    return Disagreement(
        order_differs=differs,
        beyond_noise=all(clear),
        sentence=(
            f"The {'order' if differs else 'verdict'} differs: {names[0]} leaks {end} than {names[1]} at the end of "
            f"the runs, but {here} at the same dose."
        ),
    )


def beyond_noise(difference: Estimate) -> bool:
    """Whether an interval is there and leaves out 0."""
    return difference.low is not None and difference.high is not None and not difference.low <= 0 <= difference.high


# How curves are read, in the data and in every draw


class Path(NamedTuple):
    """A curve's mean rates, each [1 + draws, checkpoints].

    The full data are row 0 of the same array, so that they and the draws cannot be read in two ways.
    """

    on: Floats
    off: Floats


class Drawn:
    """The curves under one set of draws: on- and off-topic questions drawn independently, alike for all curves."""

    def __init__(
        self, methods: Mapping[str, Sequence[Curve]], draws: int = 2000, seed: int = 0, confidence: float = 0.95
    ) -> None:
        import numpy as np

        self.seeds = {label: tuple(curve.seed for curve in curves) for label, curves in methods.items()}
        for label, seeds in self.seeds.items():
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"two curves of {label} have the same seed: {list(seeds)}")
        some = next(iter(methods.values()))[0].points[0]
        self.n_on, self.n_off, self.confidence = len(some.on), len(some.off), confidence
        rng = np.random.default_rng(seed)
        # How often each question is in each draw, [1 + draws, questions]; row 0, the full data, has each once.
        on, off = (
            np.vstack([np.ones(n), rng.multinomial(n, np.full(n, 1 / n), size=draws)]) for n in (self.n_on, self.n_off)
        )
        self.paths = {
            label: [Path(_means(on, [p.on for p in c.points]), _means(off, [p.off for p in c.points])) for c in curves]
            for label, curves in methods.items()
        }

    def rows(self, level: float, baseline: str) -> list[MatchedRow]:
        """A row per method."""
        off = self._read(lambda path: crossings(path.on, path.off, level))
        end_on, end_off = self._read(lambda path: path.on[:, -1]), self._read(lambda path: path.off[:, -1])
        return [
            MatchedRow(
                label=label,
                level=level,
                seeds=seeds,
                off=self.rate(off[label], self.n_off, MATCHED),
                minus=self._minus(label, off, MATCHED),
                baseline=baseline,
                end_on=self.rate(end_on[label], self.n_on, BOOTSTRAP),
                end_off=self.rate(end_off[label], self.n_off, BOOTSTRAP),
                end_minus=self._minus(label, end_off, BOOTSTRAP),
                n_on=self.n_on,
            )
            for label, seeds in self.seeds.items()
        ]

    def _read(self, of: Callable[[Path], Floats]) -> dict[str, Floats]:
        """By method, what `of` finds on its curves, [seeds, 1 + draws]: the full data first, then the draws."""
        import numpy as np

        return {label: np.stack([of(path) for path in paths]) for label, paths in self.paths.items()}

    def rate(self, readings: Floats, n: int, method: str) -> MatchedEstimate:
        """The mean over seeds of shares, `readings` [seeds, 1 + draws], with its interval."""
        found = self.estimate(readings.mean(axis=0), readings[:, 0], n, method)
        if found.value not in (0.0, 1.0) or found.low != found.high:
            return found
        # No draw differs from a rate of 0 or 1, which would claim certainty: Wilson's interval does not.
        bounds = wilson(round(found.value * n), n, self.confidence)
        return found.model_copy(update={"low": bounds.low, "high": bounds.high})

    def _minus(self, label: str, readings: Mapping[str, Floats], method: str) -> dict[str, MatchedEstimate]:
        """The method's readings minus those of each other one, draw by draw."""
        found = {}
        for other, seeds in self.seeds.items():
            if other != label:
                both = [(i, seeds.index(seed)) for i, seed in enumerate(self.seeds[label]) if seed in seeds]
                by_seed = [readings[label][i, 0] - readings[other][j, 0] for i, j in both]
                gap = readings[label].mean(axis=0) - readings[other].mean(axis=0)
                found[other] = self.estimate(gap, by_seed, self.n_off, method)
        return found

    def estimate(self, values: Floats, by_seed: Iterable[float], n: int, method: str) -> MatchedEstimate:
        """A mean over seeds, `values` [1 + draws], with its interval.

        NaN is 'not reached', and a mean over seeds is NaN where one of them is.
        """
        import numpy as np

        value, drawn = float(values[0]), values[1:]
        kept = drawn[~np.isnan(drawn)]
        low = high = None
        if not math.isnan(value) and kept.size and min(self.n_on, self.n_off) > 1:
            tail = (1 - self.confidence) / 2
            low, high = (float(bound) for bound in np.quantile(kept, (tail, 1 - tail)))
        return MatchedEstimate(
            value=_known(value),
            low=low,
            high=high,
            n=n,
            method=method,
            confidence=self.confidence,
            unreached=1 - kept.size / drawn.size,
            by_seed=tuple(_known(float(value)) for value in by_seed),
        )


def _means(counts: Floats, points: Sequence[Values]) -> Floats:
    """Mean of the drawn questions at each checkpoint, [1 + draws, checkpoints]."""
    import numpy as np

    values = np.array([list(point.values()) for point in points], dtype=float).T
    means: Floats = counts @ values / len(values)
    return means


def crossings(on: Floats, off: Floats, level: float | Floats) -> Floats:
    """`off_at` along the last axis, [..., checkpoints] to [...], at one level or one for each; NaN for None."""
    import numpy as np

    level = np.asarray(level, dtype=float)
    there = on >= level[..., None] - TOLERANCE
    after = there.argmax(axis=-1)[..., None]
    before = np.maximum(after - 1, 0)
    (on0, on1), (off0, off1) = (
        (np.take_along_axis(v, before, -1)[..., 0], np.take_along_axis(v, after, -1)[..., 0]) for v in (on, off)
    )
    share = np.divide(level - on0, on1 - on0, out=np.ones_like(on0), where=on1 > on0).clip(0, 1)
    crossed = there.any(axis=-1) & ((after[..., 0] > 0) | (on1 <= level + TOLERANCE))
    return np.where(crossed, off0 + share * (off1 - off0), np.nan)


def _common(points: Iterable[Values]) -> list[str]:
    ids = [set(values) for values in points]
    return sorted(set.intersection(*ids)) if ids else []


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
