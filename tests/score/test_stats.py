"""Every interval against a value worked out elsewhere, and against how often it covers the truth."""

import math
import random
import subprocess
import sys

import pytest

from emeval.score.stats import clustered_mean, mean_t, over_seeds, paired_difference, rate, wilson
from emeval.types import Estimate


def bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None and estimate.high is not None
    return estimate.low, estimate.high


class TestWilson:
    @pytest.mark.parametrize(
        ("successes", "n", "low", "high"),
        [(8, 10, 0.4902, 0.9433), (39, 40, 0.8712, 0.9956), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)],
    )
    def test_known_intervals(self, successes, n, low, high):
        found = wilson(successes, n)
        assert found.value == successes / n
        assert bounds(found) == pytest.approx((low, high), abs=5e-5)
        assert (found.n, found.method, found.confidence) == (n, "wilson", 0.95)

    @pytest.mark.parametrize("successes", [0, 3, 17, 40])
    def test_agrees_with_the_formula_written_out(self, successes):
        n, z = 40, 1.959963984540054
        p, scale = successes / n, 1 + z * z / n
        half = z / scale * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        middle = (p + z * z / (2 * n)) / scale
        assert bounds(wilson(successes, n)) == pytest.approx((middle - half, middle + half), abs=1e-12)

    def test_no_reply_is_not_a_rate_of_zero(self):
        assert wilson(0, 0) == Estimate(value=None, n=0, method="wilson")

    @pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (1, 0)])
    def test_impossible_counts_are_refused(self, successes, n):
        with pytest.raises(ValueError, match="between 0 and n"):
            wilson(successes, n)

    def test_another_confidence(self):
        found = wilson(8, 10, confidence=0.99)
        low, high = bounds(found)
        assert low < 0.4901 and high > 0.9433 and found.confidence == 0.99

    @pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
    def test_covers_the_truth_about_95_percent_of_the_time(self, p):
        n = 60
        weights = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        covered = sum(w for k, w in enumerate(weights) if wilson(k, n).low <= p <= wilson(k, n).high)
        assert 0.92 < covered < 0.985


class TestMeanT:
    def test_by_hand(self):
        # 1..5: mean 3, standard error sqrt(2.5 / 5), t(4 degrees of freedom) = 2.776445
        found = mean_t([1, 2, 3, 4, 5])
        assert found.value == 3
        assert bounds(found) == pytest.approx((3 - 1.963243, 3 + 1.963243), abs=1e-5)
        assert (found.n, found.method) == (5, "t")

    def test_one_value_has_no_interval_and_none_has_no_mean(self):
        assert mean_t([7.5]) == Estimate(value=7.5, n=1, method="t")
        assert mean_t([]) == Estimate(value=None, n=0, method="t")

    def test_nan_is_refused_rather_than_spread(self):
        with pytest.raises(ValueError, match="finite"):
            mean_t([1.0, math.nan])


class TestClusteredMean:
    def test_by_hand(self):
        # Residual sums per question +1, -1, 0; variance 3/2 * 2 / 6^2 = 1/12; t(2 degrees of freedom) = 4.302653
        found = clustered_mean([1, 1, 0, 0, 1, 0], ["a", "a", "b", "b", "c", "c"])
        assert found.value == 0.5
        assert bounds(found) == pytest.approx((0.5 - 1.242069, 0.5 + 1.242069), abs=1e-5)
        assert (found.n, found.method) == (3, "t-clustered")

    def test_unequal_clusters_by_hand(self):
        # Mean 3; residual sums -1 (1, 2, 5 -> -2-1+2), +1 (4); variance 2/1 * 2 / 4^2 = 1/4; t(1) = 12.706205
        found = clustered_mean([1, 2, 5, 4], ["a", "a", "a", "b"])
        assert found.value == 3
        assert bounds(found) == pytest.approx((3 - 6.353102, 3 + 6.353102), abs=1e-4)

    def test_one_reply_per_question_is_the_plain_mean(self):
        values = [0.1, 0.7, 0.4, 0.9]
        assert clustered_mean(values, ["a", "b", "c", "d"]) == mean_t(values)

    def test_the_order_of_replies_does_not_matter(self):
        a = clustered_mean([1, 0, 1, 1], ["x", "y", "x", "y"])
        b = clustered_mean([1, 1, 0, 1], ["x", "x", "y", "y"])
        assert bounds(a) == pytest.approx(bounds(b))

    def test_one_question_asked_often_tells_nothing_about_other_questions(self):
        assert clustered_mean([1, 0, 1], ["a", "a", "a"]).low is None

    def test_no_replies(self):
        assert clustered_mean([], []).value is None

    def test_every_reply_needs_its_question(self):
        with pytest.raises(ValueError, match="3 values but 2 clusters"):
            clustered_mean([1, 2, 3], ["a", "b"])

    def test_covers_where_the_plain_interval_does_not(self):
        draw = random.Random(20261123)
        truth, questions, replies, trials = 0.5, 30, 5, 400
        hits = {"clustered": 0, "plain": 0}
        for _ in range(trials):
            values, clusters = [], []
            for q in range(questions):
                p = draw.betavariate(1, 1)  # questions differ, so replies to one question agree
                values += [float(draw.random() < p) for _ in range(replies)]
                clusters += [q] * replies
            for name, found in (("clustered", clustered_mean(values, clusters)), ("plain", mean_t(values))):
                low, high = bounds(found)
                hits[name] += low <= truth <= high
        assert 0.92 <= hits["clustered"] / trials <= 0.98
        assert hits["plain"] / trials < 0.88


class TestRate:
    def test_one_reply_per_question_is_wilson(self):
        assert rate([True] * 8 + [False] * 2, [str(i) for i in range(10)]) == wilson(8, 10)

    def test_several_replies_are_clustered_and_stay_within_0_and_1(self):
        found = rate([True, True, True, True, True, False], ["a", "a", "b", "b", "c", "c"])
        assert found.method == "t-clustered"
        assert found.value == pytest.approx(5 / 6)
        assert (found.n, found.high) == (3, 1.0)

    def test_several_seeing_all_the_same_is_not_certainty(self):
        found = rate([True] * 30, [str(i % 10) for i in range(30)])
        assert found == wilson(10, 10)

    def test_questions_that_agree_in_part_are_not_certainty_either(self):
        found = rate([True, False] * 5, [str(i // 2) for i in range(10)])
        low, high = bounds(found)
        assert found.value == 0.5 and low == pytest.approx(0.1704, abs=1e-4) and high == pytest.approx(0.8296, abs=1e-4)

    def test_nothing_scored(self):
        assert rate([], []).value is None


class TestPairedDifference:
    def test_by_hand_on_the_common_questions(self):
        # Differences 1, 0, 1, 0: mean 0.5, s 0.57735, standard error 0.288675, t(3) = 3.182446
        a = {"q1": 1, "q2": 1, "q3": 1, "q4": 0, "only a": 1}
        b = {"q1": 0, "q2": 1, "q3": 0, "q4": 0, "only b": 1}
        found = paired_difference(a, b)
        assert found.value == 0.5
        assert bounds(found) == pytest.approx((0.5 - 0.918693, 0.5 + 0.918693), abs=1e-5)
        assert (found.n, found.method) == (4, "t-paired")

    def test_pairing_is_narrower_than_two_samples_where_questions_agree(self):
        a = {str(i): float(i) for i in range(20)}
        b = {key: value - 1 - 0.1 * (int(key) % 2) for key, value in a.items()}
        low, high = bounds(paired_difference(a, b))
        assert high - low < 0.1

    def test_no_common_question_is_no_difference(self):
        assert paired_difference({"a": 1}, {"b": 1}).value is None

    def test_one_pair_has_no_interval(self):
        found = paired_difference({"a": 1}, {"a": 0})
        assert (found.value, found.low, found.n) == (1, None, 1)


class TestOverSeeds:
    def test_mean_and_range_with_the_number_of_seeds(self):
        found = over_seeds([wilson(30, 40), wilson(36, 40), wilson(24, 40)])
        assert found.value == pytest.approx(0.75)
        assert bounds(found) == (0.6, 0.9)
        assert (found.n, found.method) == (3, "seeds-range")

    def test_a_seed_without_a_value_is_left_out_not_zero(self):
        found = over_seeds([wilson(30, 40), wilson(0, 0)])
        assert (found.value, found.low, found.n) == (0.75, None, 1)

    def test_no_seed(self):
        assert over_seeds([]).value is None


def test_importing_the_statistics_stays_light():
    code = "import sys, emeval.score.stats, emeval.score.metrics; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"scipy", "statsmodels", "pandas", "numpy"} & set(loaded)
