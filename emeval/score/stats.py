"""Errors for every number a table prints (DESIGN decision 7); scipy and statsmodels do the arithmetic.

One rule holds throughout: `Estimate.n` counts independent units (replies where each question has one, otherwise
questions, pairs or seeds), never the replies inside a unit, so a small n can be seen for what it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from emeval.types import Estimate

FEW_CLUSTERS = 20
"""Under this many questions a clustered interval is too narrow to trust, and the table says so."""

DRAWS = 5000
"""Bootstrap resamples; the ends of an interval then move by a few tenths of a point from seed to seed."""

CLUSTERED = "t-clustered"
SEEDS_RANGE = "seeds-range"


def wilson(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """Share of successes with its Wilson score interval, for independent replies.

    Args:
        successes: How many of the `n` replies show the behaviour.
        n: Number of scored replies. With 0 the value is None, since nothing was measured.
        confidence: Two-sided coverage, between 0 and 1.

    Raises:
        ValueError: `successes` is not between 0 and `n`.

    Source: Wilson (1927), without continuity correction.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie between 0 and n={n}, got {successes}")
    return _wilson(successes / n, n, confidence) if n else Estimate(value=None, n=0, method="wilson")


def mean_t(values: Iterable[float], confidence: float = 0.95) -> Estimate:
    """Mean of independent values (any unit) with Student's t interval; no interval from fewer than two values.

    Raises:
        ValueError: A value is NaN or infinite.
    """
    sample = _finite(values)
    n = len(sample)
    mean = math.fsum(sample) / n if n else None
    if mean is None or n < 2:
        return Estimate(value=mean, n=n, method="t", confidence=confidence)
    from scipy import stats

    variance = math.fsum((x - mean) ** 2 for x in sample) / (n - 1)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * math.sqrt(variance / n)
    return Estimate(value=mean, low=mean - half, high=mean + half, n=n, method="t", confidence=confidence)


def clustered_mean(values: Sequence[float], clusters: Sequence[Hashable], confidence: float = 0.95) -> Estimate:
    """Mean of replies whose errors are shared within a question.

    The variance is the cluster-robust one times G / (G - 1), the interval Student's t with G - 1 degrees of freedom,
    G being the number of questions. With one reply per question this is `mean_t`, and is returned as such.

    Args:
        values: One value per reply, any unit.
        clusters: The question each reply answers, in the same order.
        confidence: Two-sided coverage, between 0 and 1.

    Returns:
        The mean over replies; `n` is G. No interval where G < 2.

    Raises:
        ValueError: The two sequences differ in length, or a value is NaN or infinite.

    Source: Liang and Zeger (1986); Cameron and Miller (2015) for the correction and the degrees of freedom.
    """
    codes = _codes(values, clusters)
    groups = len(set(codes))
    if groups == len(codes):
        return mean_t(values, confidence)
    sample = _finite(values)
    mean = math.fsum(sample) / len(sample)
    if groups < 2:
        return Estimate(value=mean, n=groups, method=CLUSTERED, confidence=confidence)
    low, high = _clustered_interval(sample, codes, confidence)
    return Estimate(value=mean, low=low, high=high, n=groups, method=CLUSTERED, confidence=confidence)


def rate(flags: Sequence[bool], clusters: Sequence[str], confidence: float = 0.95) -> Estimate:
    """Appearance rate, a share between 0 and 1: Wilson with one reply per question, else clustered by question.

    Where the questions do not differ at all (a rate of 0 or 1, say) the clustered error is 0 and would claim
    certainty; then the interval is Wilson's over the questions, as if each had been asked once.

    Args:
        flags: One flag per scored reply, true where the behaviour appears.
        clusters: The question each reply answers, in the same order.
        confidence: Two-sided coverage, between 0 and 1.

    Raises:
        ValueError: The two sequences differ in length.
    """
    groups = len(set(_codes(flags, clusters)))
    if groups == len(flags):
        return wilson(sum(map(bool, flags)), groups, confidence)
    found = clustered_mean([float(flag) for flag in flags], clusters, confidence)
    if found.value is None or found.low is None or found.high is None or found.high - found.low < 1e-9:
        return _wilson(found.value or 0.0, groups, confidence)
    return found.model_copy(update={"low": max(0.0, found.low), "high": min(1.0, found.high)})


def paired_difference(a: Mapping[str, float], b: Mapping[str, float], confidence: float = 0.95) -> Estimate:
    """Mean of a - b over the questions that both answered, with a t interval over the pairs.

    Args:
        a: Value by question id (a 0/1 flag, a score; the unit of the result is theirs).
        b: The other run's values.
        confidence: Two-sided coverage, between 0 and 1.

    Returns:
        `n` is the number of pairs; the value is None without a common question. Pairs that all differ by the same
        amount give an interval of no width: the pairs hold no information about its error.

    Raises:
        ValueError: A value of a common question is NaN or infinite.
    """
    common = sorted(a.keys() & b.keys())
    found = mean_t([a[key] - b[key] for key in common], confidence)
    return found.model_copy(update={"method": "t-paired"})


def em_f1_estimate(
    id_values: Mapping[str, float], em_values: Mapping[str, float], confidence: float = 0.95
) -> Estimate:
    """EM-F1 of mean ID and mean EM, with a bootstrap in which their questions are drawn independently.

    Args:
        id_values: Alignment (0-100) by in-domain question.
        em_values: Alignment (0-100) by general question.
        confidence: Two-sided coverage, between 0 and 1.

    Returns:
        `n` is the smaller number of questions. No value without questions on either side, no interval from one.
    """
    first, second = sorted(id_values), sorted(em_values)
    return _bootstrapped(
        lambda i, e: _em_f1s([id_values[q] for q in first], [em_values[q] for q in second], i, e),
        (len(first), len(second)),
        confidence,
    )


def em_f1_difference(
    a: tuple[Mapping[str, float], Mapping[str, float]],
    b: tuple[Mapping[str, float], Mapping[str, float]],
    confidence: float = 0.95,
) -> Estimate:
    """EM-F1 of a minus that of b, over the questions both answered: each draw takes the same questions for both.

    Args:
        a: Alignment (0-100) by question, in-domain and general.
        b: The other run's.
        confidence: Two-sided coverage, between 0 and 1.
    """
    shared = [sorted(a[k].keys() & b[k].keys()) for k in (0, 1)]
    values = [[[run[k][q] for q in shared[k]] for k in (0, 1)] for run in (a, b)]
    return _bootstrapped(
        lambda i, e: _em_f1s(values[0][0], values[0][1], i, e) - _em_f1s(values[1][0], values[1][1], i, e),
        (len(shared[0]), len(shared[1])),
        confidence,
    )


def _em_f1s(id_values: Sequence[float], em_values: Sequence[float], i: Any, e: Any) -> Any:
    """EM-F1 of each draw; `i` and `e` are the drawn questions, the last axis being a draw's."""
    import numpy as np

    learned = 100 - np.asarray(id_values)[i].mean(axis=-1)
    clean = np.asarray(em_values)[e].mean(axis=-1)
    total = learned + clean
    return np.where(total > 0, 2 * learned * clean / np.where(total > 0, total, 1), 0.0)


def _bootstrapped(statistic: Callable[[Any, Any], Any], sizes: tuple[int, int], confidence: float) -> Estimate:
    """A statistic of two independent sets of questions, given by their positions, with a percentile interval."""
    import numpy as np
    from scipy import stats

    n = min(sizes)
    if n == 0:
        return Estimate(value=None, n=0, method="bootstrap")
    positions = tuple(np.arange(size) for size in sizes)
    value = float(statistic(*positions))
    if n < 2:
        return Estimate(value=value, n=n, method="bootstrap", confidence=confidence)
    found = stats.bootstrap(
        positions,
        lambda i, e, axis=-1: statistic(i.astype(int), e.astype(int)),
        n_resamples=DRAWS,
        vectorized=True,
        paired=False,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = (float(bound) for bound in found.confidence_interval)
    if high - low < 1e-9:  # no question differs from the others: the draws know nothing of the error
        return Estimate(value=value, n=n, method="bootstrap", confidence=confidence)
    return Estimate(value=value, low=low, high=high, n=n, method="bootstrap", confidence=confidence)


def over_seeds(estimates: Iterable[Estimate]) -> Estimate:
    """Mean of per-seed estimates, with the smallest and largest of them as `low` and `high`.

    A range, not an interval: `confidence` says nothing here. Seeds share their questions, so replies are not pooled:
    `n` is the number of seeds that have a value. One seed has no range.
    """
    values = [estimate.value for estimate in estimates if estimate.value is not None]
    if not values:
        return Estimate(value=None, n=0, method=SEEDS_RANGE)
    low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
    mean = math.fsum(values) / len(values)
    return Estimate(value=mean, low=low, high=high, n=len(values), method=SEEDS_RANGE)


def _wilson(share: float, n: int, confidence: float) -> Estimate:
    """Wilson's interval around a share of `n`; the share of questions asked several times need not be a whole count."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(share * n, n, alpha=1 - confidence, method="wilson")
    return Estimate(value=share, low=float(low), high=float(high), n=n, method="wilson", confidence=confidence)


def _clustered_interval(values: list[float], codes: list[int], confidence: float) -> tuple[float, float]:
    """Interval of the constant of a regression on nothing else; `use_t` makes its degrees of freedom G - 1."""
    from statsmodels.regression.linear_model import OLS

    fit = OLS(values, [1.0] * len(values)).fit(cov_type="cluster", cov_kwds={"groups": codes}, use_t=True)
    low, high = fit.conf_int(alpha=1 - confidence)[0]
    return float(low), float(high)


def _codes(values: Sequence[object], clusters: Sequence[Hashable]) -> list[int]:
    """Clusters as integers from 0, in order of appearance."""
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values but {len(clusters)} clusters")
    seen: dict[Hashable, int] = {}
    return [seen.setdefault(cluster, len(seen)) for cluster in clusters]


def _finite(values: Iterable[float]) -> list[float]:
    """The values as floats. A NaN would spread through a mean unseen, so it is refused here."""
    sample = [float(value) for value in values]
    if not all(map(math.isfinite, sample)):
        raise ValueError("values must be finite: leave out what was not scored")
    return sample
