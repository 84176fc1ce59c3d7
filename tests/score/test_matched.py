"""Methods at equal dose, against learners whose truth is known: same leak at another speed, less leak, no crossing."""

import subprocess
import sys
import time

import numpy as np
import pytest
from pydantic import ValidationError

from emeval.score.matched import (
    LEVELS,
    Curve,
    MatchedEstimate,
    Point,
    choose_level,
    disagrees,
    matched,
    off_at,
    on_common_questions,
)
from emeval.types import Estimate

N_ON, N_OFF = 40, 60


def curve(on, off, label="sft", seed=0):
    """A curve whose rates are exactly `on` and `off`: each question has the rate as its value."""
    points = []
    for k, (a, b) in enumerate(zip(on, off, strict=True)):
        points.append(Point(step=4 * k, on=dict.fromkeys(("a1", "a2"), a), off=dict.fromkeys(("b1", "b2", "b3"), b)))
    return Curve(label=label, seed=seed, points=tuple(points))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Questions:
    """Questions as they are drawn from all questions there could be: some learn the behaviour sooner than others."""

    SPREAD = 1.5

    def __init__(self, draw: int, n_on: int = N_ON, n_off: int = N_OFF) -> None:
        rng = np.random.default_rng([7, draw])
        self.on, self.off = rng.normal(0, self.SPREAD, n_on), rng.normal(0, self.SPREAD, n_off)

    def learn(self, doses, leak=-1.0, label="sft", seed=0, flags=True):
        """A run that has taken the given dose by each checkpoint; a higher `leak` reaches off-topic sooner."""
        rng = np.random.default_rng([seed, len(doses), round(100 * (leak + 9))])
        points = []
        for k, dose in enumerate(doses):
            p_on, p_off = sigmoid(dose + self.on), sigmoid(dose + leak + self.off)
            if flags:
                p_on, p_off = rng.random(p_on.size) < p_on, rng.random(p_off.size) < p_off
            on, off = ({f"q{i}": float(v) for i, v in enumerate(values)} for values in (p_on, p_off))
            points.append(Point(step=4 * k, on=on, off=off))
        return Curve(label=label, seed=seed, points=tuple(points))


def true_off(level: float, leak: float = -1.0) -> float:
    """Off-topic over all possible questions at the dose that brings on-topic to `level`."""
    everyone = np.random.default_rng(0).normal(0, Questions.SPREAD, 20_000)
    doses = np.linspace(-6, 6, 121)
    dose = np.interp(level, [sigmoid(d + everyone).mean() for d in doses], doses)
    return float(sigmoid(dose + leak + everyone).mean())


FAST, SLOW = np.linspace(-5, 4, 12), np.linspace(-5, 1.8, 12)


class TestOffAt:
    def test_lies_on_the_line_between_the_two_checkpoints_around_the_level(self):
        assert off_at([0.0, 0.6, 1.0], [0.0, 0.2, 0.8], 0.7) == pytest.approx(0.2 + 0.25 * 0.6)

    def test_is_the_checkpoint_itself_where_it_has_exactly_the_level(self):
        assert off_at([0.0, 0.6, 1.0], [0.0, 0.2, 0.8], 0.6) == pytest.approx(0.2)

    def test_a_level_that_is_never_reached_has_no_value(self):
        assert off_at([0.0, 0.5, 0.79], [0.0, 0.2, 0.5], 0.8) is None

    def test_nor_has_one_that_was_passed_before_the_first_checkpoint(self):
        assert off_at([0.6, 0.9], [0.3, 0.5], 0.5) is None
        assert off_at([0.5, 0.9], [0.3, 0.5], 0.5) == pytest.approx(0.3)

    @pytest.mark.parametrize("later", [[], [0.5, 0.9], [0.95], [0.71, 0.69]])
    def test_the_first_crossing_counts_whatever_comes_after(self, later):
        on, off = [0.1, 0.5, 0.9, *later], [0.0, 0.1, 0.3, *(0.9 for _ in later)]
        assert off_at(on, off, 0.7) == pytest.approx(0.2)

    def test_a_dip_before_the_crossing_is_interpolated_from_the_dip(self):
        # The running maximum stands at 0.6 by then, but the curve itself comes from 0.4.
        assert off_at([0.0, 0.6, 0.4, 0.8], [0.0, 0.5, 0.2, 0.4], 0.7) == pytest.approx(0.2 + 0.75 * 0.2)

    def test_on_topic_that_stands_still_at_the_level_is_read_where_it_arrived(self):
        assert off_at([0.2, 0.8, 0.8], [0.0, 0.3, 0.9], 0.8) == pytest.approx(0.3)

    def test_a_mean_that_misses_the_level_by_a_rounding_error_has_reached_it(self):
        assert off_at([0.0, sum([0.1] * 8)], [0.0, 0.5], 0.8) == pytest.approx(0.5)

    def test_off_topic_may_fall_while_on_topic_rises(self):
        assert off_at([0.0, 1.0], [0.6, 0.2], 0.5) == pytest.approx(0.4)

    @pytest.mark.parametrize(("on", "off"), [([], []), ([0.1], [0.1, 0.2])])
    def test_checkpoints_must_match(self, on, off):
        with pytest.raises(ValueError, match="checkpoints"):
            off_at(on, off, 0.5)


class TestCurve:
    def test_steps_rise(self):
        points = [Point(step=s, on={"a": 0}, off={"b": 0}) for s in (4, 0)]
        with pytest.raises(ValidationError, match="steps must rise"):
            Curve(label="sft", seed=0, points=tuple(points))

    @pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
    def test_values_are_shares(self, value):
        with pytest.raises(ValidationError):
            Point(step=0, on={"a": value}, off={"b": 0})

    def test_a_point_without_questions_measures_nothing(self):
        with pytest.raises(ValidationError):
            Point(step=0, on={}, off={"b": 0})

    def test_only_questions_that_all_points_have_are_compared(self):
        first = Point(step=0, on={"a": 0, "b": 0}, off={"x": 0, "y": 0})
        second = Point(step=4, on={"b": 1, "a": 1}, off={"y": 1})
        third = Point(step=8, on={"b": 1}, off={"y": 1, "z": 1})
        curves = {"sft": [Curve(label="sft", seed=0, points=(first, second))]}
        curves["treft"] = [Curve(label="treft", seed=0, points=(third,))]
        cut = on_common_questions(curves)
        assert all((set(p.on), set(p.off)) == ({"b"}, {"y"}) for c in (*cut["sft"], *cut["treft"]) for p in c.points)

    def test_no_common_question_is_an_error(self):
        one, two = Point(step=0, on={"a": 0}, off={"x": 0}), Point(step=4, on={"a": 0}, off={"y": 0})
        with pytest.raises(ValueError, match="no off-topic question"):
            on_common_questions({"sft": [Curve(label="sft", seed=0, points=(one, two))]})


class TestChooseLevel:
    def test_the_highest_level_that_every_curve_crosses(self):
        best, least = curve([0, 1.0], [0, 1]), curve([0, 0.83], [0, 1], "treft")
        assert choose_level([best]) == 0.95
        assert choose_level([best, least]) == 0.8

    def test_every_seed_counts(self):
        assert choose_level([curve([0, 1.0], [0, 1]), curve([0, 0.61], [0, 1], seed=1)]) == 0.6

    def test_none_where_one_learns_too_little_or_is_there_from_the_start(self):
        assert choose_level([curve([0, 1.0], [0, 1]), curve([0, 0.4], [0, 1])]) is None
        assert choose_level([curve([0.96, 1.0], [0, 1])]) is None
        assert choose_level([]) is None

    def test_the_levels_are_fixed_beforehand(self):
        assert LEVELS == (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


class TestMatched:
    def test_equals_the_bootstrap_written_out(self):
        """Draw questions, average, cross: one draw at a time, with the draws in the documented order."""
        asked = Questions(0)
        runs = {"sft": [asked.learn(FAST)], "treft": [asked.learn(SLOW, leak=-1.5, label="treft")]}
        level, draws, seed = 0.6, 60, 5
        rng = np.random.default_rng(seed)
        times_on = rng.multinomial(N_ON, [1 / N_ON] * N_ON, size=draws)
        times_off = rng.multinomial(N_OFF, [1 / N_OFF] * N_OFF, size=draws)

        def mean(values, times):
            # Questions are in the order of their ids.
            return sum(values[q] * t for q, t in zip(sorted(values), times, strict=True)) / sum(times)

        read = {}
        for label, (run,) in runs.items():
            read[label] = [
                off_at([mean(p.on, a) for p in run.points], [mean(p.off, b) for p in run.points], level)
                for a, b in zip(times_on, times_off, strict=True)
            ]
        sft, treft = matched(runs, [level], draws=draws, seed=seed)
        gaps = [b - a for a, b in zip(read["sft"], read["treft"], strict=True)]
        for found, values in ((sft.off, read["sft"]), (treft.off, read["treft"]), (treft.difference, gaps)):
            assert (found.low, found.high) == pytest.approx(tuple(np.quantile(values, (0.025, 0.975))))

    def test_the_value_is_that_of_the_data(self):
        run = Questions(0).learn(FAST)
        (row,) = matched({"sft": [run]}, [0.7])
        assert row.off.value == pytest.approx(off_at(run.on_means, run.off_means, 0.7))
        assert (row.off.n, row.n_on, row.off.method, row.off.confidence) == (N_OFF, N_ON, "bootstrap-matched", 0.95)

    def test_the_same_curve_at_another_speed_leaks_the_same_though_the_runs_end_apart(self):
        asked = Questions(1, 200, 200)
        runs = {"sft": [asked.learn(FAST, flags=False)], "slow": [asked.learn(SLOW, label="slow", flags=False)]}
        slow = matched(runs, [0.6])[1]
        assert slow.end_minus["sft"].high < -0.1
        assert abs(slow.difference.value) < 0.01
        assert slow.difference.low < 0 < slow.difference.high or abs(slow.difference.high) < 0.01

    def test_a_method_that_truly_leaks_less_is_found(self):
        asked = Questions(2, 100, 110)
        runs = {"sft": [asked.learn(FAST)], "clean": [asked.learn(FAST, leak=-2.5, label="clean")]}
        clean = matched(runs, [0.8])[1]
        truth = true_off(0.8, -2.5) - true_off(0.8)
        assert clean.difference.high < 0
        assert clean.difference.low < truth < clean.difference.high

    def test_intervals_cover_the_truth_about_95_percent_of_the_time(self):
        """Two learners on the same curve, one at half the speed: what the dose trap would call a difference."""
        level, trials = 0.6, 150
        truth = true_off(level)
        covered = {"rate": 0, "difference": 0, "end of run": 0}
        for draw in range(trials):
            asked = Questions(draw)
            runs = {"sft": [asked.learn(FAST, seed=draw)], "slow": [asked.learn(SLOW, label="slow", seed=draw)]}
            sft, slow = matched(runs, [level], draws=300, seed=draw)
            covered["rate"] += sft.off.low <= truth <= sft.off.high
            covered["difference"] += slow.difference.low <= 0 <= slow.difference.high
            covered["end of run"] += slow.end_minus["sft"].low <= 0 <= slow.end_minus["sft"].high
        assert 0.9 <= covered["rate"] / trials <= 1
        assert 0.9 <= covered["difference"] / trials <= 1
        assert covered["end of run"] / trials < 0.1

    def test_identical_methods_differ_by_exactly_nothing(self):
        run = Questions(3).learn(FAST, flags=False)
        rows = matched({"sft": [run], "same": [run.model_copy(update={"label": "same"})]}, [0.5, 0.8])
        for row in rows[1::2]:
            for gap in (row.difference, row.end_minus["sft"]):
                assert (gap.value, gap.low, gap.high) == (0, 0, 0)

    def test_the_same_seed_gives_the_same_numbers_another_one_others(self):
        runs = {"sft": [Questions(4).learn(FAST)]}
        assert matched(runs, [0.7]) == matched(runs, [0.7])
        assert matched(runs, [0.7])[0].off.low != matched(runs, [0.7], seed=1)[0].off.low

    def test_the_draws_do_not_depend_on_which_methods_stand_beside(self):
        asked = Questions(5)
        alone = matched({"sft": [asked.learn(FAST)]}, [0.7])[0]
        beside = matched({"sft": [asked.learn(FAST)], "slow": [asked.learn(SLOW, label="slow")]}, [0.7])[0]
        assert alone.off == beside.off

    def test_rows_come_by_level_then_method(self):
        asked = Questions(5)
        rows = matched({"b": [asked.learn(FAST)], "a": [asked.learn(SLOW)]}, [0.5, 0.6], draws=10)
        assert [(row.level, row.label) for row in rows] == [(0.5, "b"), (0.5, "a"), (0.6, "b"), (0.6, "a")]

    def test_differences_are_to_the_baseline_and_to_all_others(self):
        asked = Questions(6)
        runs = {name: [asked.learn(FAST, leak, name)] for name, leak in (("sft", -1.0), ("x", -1.5), ("y", -2.0))}
        sft, x, y = matched(runs, [0.7], draws=50)
        assert sft.difference is None
        assert y.difference == y.minus["sft"]
        assert y.difference.value == pytest.approx(y.off.value - sft.off.value)
        assert y.minus["x"].value == pytest.approx(y.off.value - x.off.value)
        assert (x.minus["y"].low, x.minus["y"].high) == pytest.approx((-y.minus["x"].high, -y.minus["x"].low))
        assert matched(runs, [0.7], draws=50, baseline="x")[2].difference == y.minus["x"]

    def test_a_rate_that_no_draw_can_move_is_not_certain(self):
        run = curve([0, 1], [0, 0])
        off = matched({"sft": [run]}, [0.5])[0].off
        assert (off.value, off.low, off.high) == pytest.approx((0, 0, 0.5615), abs=1e-4)  # Wilson's for 0 of 3

    def test_one_question_gives_no_interval(self):
        run = Curve(
            label="sft",
            seed=0,
            points=(Point(step=0, on={"a": 0}, off={"x": 0}), Point(step=4, on={"a": 1}, off={"x": 1})),
        )
        off = matched({"sft": [run]}, [0.5])[0].off
        assert (off.value, off.low, off.high) == (0.5, None, None)

    @pytest.mark.parametrize(
        ("runs", "more", "words"),
        [
            ({}, {}, "needs a curve"),
            ({"sft": []}, {}, "needs a curve"),
            ({"sft": [curve([0, 1], [0, 1])]}, {"baseline": "x"}, "baseline 'x'"),
            ({"sft": [curve([0, 1], [0, 1])] * 2}, {}, "same seed"),
            ({"sft": [curve([0, 1], [0, 1])]}, {"draws": 0}, "at least 1 draw"),
            ({"sft": [curve([0, 1], [0, 1])]}, {"levels": [80]}, "between 0 and 1"),
        ],
    )
    def test_bad_input_is_refused(self, runs, more, words):
        with pytest.raises(ValueError, match=words):
            matched(runs, **({"levels": [0.5]} | more))

    def test_two_thousand_draws_of_a_whole_study_take_a_moment(self):
        asked = Questions(8, 100, 110)
        runs = {
            f"m{leak}": [asked.learn(FAST, leak, f"m{leak}", seed) for seed in range(3)] for leak in (-1.0, -1.5, -2.0)
        }
        began = time.perf_counter()
        matched(runs, [0.7, 0.8], draws=2000)
        assert time.perf_counter() - began < 5


class TestNotReached:
    def test_has_no_value_and_no_interval(self):
        runs = {"sft": [curve([0, 1], [0, 1])], "lazy": [curve([0, 0.5], [0, 0.1], "lazy")]}
        sft, lazy = matched(runs, [0.8])
        assert sft.off.value == pytest.approx(0.8)
        for found in (lazy.off, lazy.difference):
            assert (found.value, found.low, found.high, found.unreached) == (None, None, None, 1)
        assert lazy.end_off.value == pytest.approx(0.1)  # the end of the run is known all the same

    def test_a_level_that_many_draws_miss_leaves_the_interval_open(self):
        run = Questions(9).learn(FAST)
        peak = max(run.on_means)
        (low, high) = matched({"sft": [run]}, [0.5, peak])
        assert low.off.unreached == 0 and not low.off.open
        assert high.off.value is not None
        assert 0.1 < high.off.unreached < 0.9 and high.off.open

    def test_a_difference_is_open_where_either_method_is(self):
        asked = Questions(9)
        runs = {"sft": [asked.learn(FAST)], "slow": [asked.learn(SLOW, label="slow")]}
        sft, slow = matched(runs, [max(runs["slow"][0].on_means)])
        assert not sft.off.open and slow.off.open
        assert slow.difference.unreached == pytest.approx(slow.off.unreached, abs=0.02) and slow.difference.open


class TestSeeds:
    def runs(self, leaks, label="sft", draw=10):
        asked = Questions(draw)
        return [asked.learn(FAST, leak, label, seed) for seed, leak in enumerate(leaks)]

    def test_value_is_the_mean_of_the_seeds_with_their_range_apart(self):
        runs = self.runs((-0.8, -1.2, -1.6))
        (row,) = matched({"sft": runs}, [0.7], draws=200)
        each = [off_at(run.on_means, run.off_means, 0.7) for run in runs]
        assert row.seeds == (0, 1, 2) and row.off.by_seed == pytest.approx(each)
        assert row.off.value == pytest.approx(np.mean(each))
        assert (row.off.seeds.low, row.off.seeds.high) == pytest.approx((min(each), max(each)))
        assert row.off.n == N_OFF  # never seeds times questions

    def test_one_seed_has_no_range(self):
        (row,) = matched({"sft": self.runs((-1.0,))}, [0.7], draws=50)
        assert (row.off.seeds.n, row.off.seeds.low) == (1, None)

    def test_the_same_seed_thrice_does_not_narrow_the_interval(self):
        (run,) = self.runs((-1.0,))
        one = matched({"sft": [run]}, [0.7])[0].off
        three = matched({"sft": [run.model_copy(update={"seed": s}) for s in range(3)]}, [0.7])[0].off
        assert (three.low, three.high) == pytest.approx((one.low, one.high))

    def test_differences_by_seed_are_of_the_seeds_both_have(self):
        sft, other = self.runs((-1.0, -1.0, -1.0)), self.runs((-2.0, -2.0), "treft")[1:]
        row = matched({"sft": sft, "treft": other}, [0.7], draws=50)[1]
        a, b = (off_at(run.on_means, run.off_means, 0.7) for run in (sft[1], other[0]))
        assert row.difference.by_seed == pytest.approx((b - a,))

    def test_a_method_is_not_reached_where_one_of_its_seeds_is_not(self):
        runs = [curve([0, 1], [0, 0.9]), curve([0, 0.6], [0, 0.2], seed=1)]
        (row,) = matched({"sft": runs}, [0.8], draws=50)
        assert row.off.value is None
        assert row.off.by_seed == (pytest.approx(0.72), None)


def gap(value, half):
    return Estimate(value=value, low=value - half, high=value + half, n=60, method="t")


class TestDisagrees:
    def test_where_the_other_method_leaks_less(self):
        found = disagrees(gap(-0.2, 0.1), gap(0.15, 0.1), ("treft", "sft"))
        assert found.order_differs and found.beyond_noise
        assert found.sentence == (
            "The order differs: treft leaks 20.0 points less (beyond noise) than sft at the end of the runs, but "
            "15.0 points more (beyond noise) at the same dose."
        )

    def test_within_noise_too_but_it_says_so(self):
        found = disagrees(gap(-0.2, 0.1), gap(0.02, 0.1))
        assert found.order_differs and not found.beyond_noise
        assert "2.0 points more (within noise)" in found.sentence

    def test_where_a_clear_gap_is_gone_at_the_same_rate(self):
        found = disagrees(gap(-0.2, 0.1), gap(-0.02, 0.1))
        assert not found.order_differs and not found.beyond_noise
        assert found.sentence.startswith("The verdict differs")

    @pytest.mark.parametrize("pair", [(gap(-0.2, 0.1), gap(-0.15, 0.1)), (gap(0.02, 0.1), gap(0.05, 0.1))])
    def test_the_same_order_and_verdict_agree(self, pair):
        assert disagrees(*pair) is None

    def test_what_was_not_reached_disagrees_with_nothing(self):
        nothing = MatchedEstimate(value=None, n=60, method="bootstrap-matched", unreached=1.0)
        assert disagrees(gap(-0.2, 0.1), nothing) is None

    def test_the_dose_trap_is_called_by_its_name(self):
        asked = Questions(1, 200, 200)
        runs = {"sft": [asked.learn(FAST)], "slow": [asked.learn(SLOW, label="slow")]}
        slow = matched(runs, [0.6])[1]
        assert disagrees(slow.end_minus["sft"], slow.difference, ("slow", "sft"))


def test_importing_it_loads_no_numpy():
    code = "import sys, emeval.score.matched; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
