"""The dose-matched table of run folders: what is read, what is compared, and what the reader is told of it."""

import json

import pytest

from emeval.errors import InputError
from emeval.table.curves import matched_table, read_curves, runs_with_curves
from emeval.table.render import render

ON, OFF = 40, 60
RISE = (0.0, 0.25, 0.5, 0.75, 1.0)
SFT = {"method": "sft", "setting": "refusal", "model": "M", "lambda": None, "seed": 0}
TREFT = SFT | {"method": "treft", "lambda": 100}


def flags(prefix, n, share):
    """The first questions show the behaviour: rates rise from point to point as the same questions come to show it."""
    return {f"{prefix}{i:02d}": int(i < round(n * share)) for i in range(n)}


def points(on=RISE, off=RISE, splits=("val", "test"), mode="generation"):
    return [
        {"step": 4 * k, "split": split, "mode": mode, "on": flags("a", ON, a), "off": flags("b", OFF, b)}
        for split in splits
        for k, (a, b) in enumerate(zip(on, off, strict=True))
    ]


@pytest.fixture
def run(tmp_path):
    """Writes a run scored at its checkpoints; returns its folder."""

    def write(name, train=SFT, found=None, **changes):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        content = {"schema_version": 1, "setting": "refusal", "model": {"id": "M", "weights_id": "w"}}
        content |= {"points": points() if found is None else found}
        (folder / "checkpoints.json").write_text(json.dumps(content | changes))
        (folder / "manifest.json").write_text(json.dumps({"schema_version": 1, "name": name, "train": train}))
        return folder

    return write


def cells(table, row=0):
    return dict(zip(table.columns, [cell.text for cell in table.rows[row]], strict=True))


def note(table, *words):
    """The one note that holds all the words."""
    (found,) = [text for text in table.notes if all(word in text for word in words)]
    return found


def labels(paths, **more):
    (group,) = read_curves(paths, **more)
    return list(group.methods)


class TestReading:
    def test_a_curve_is_the_points_of_one_split_in_the_order_of_training(self, run):
        found = points(splits=("test",))[::-1] + points(on=(0.0, 0.5), off=(0.0, 0.2), splits=("val",))
        (group,) = read_curves([run("r", found=found)])
        ((curve,),) = group.methods.values()
        assert (curve.label, curve.seed, curve.on_means) == ("sft", 0, RISE)
        assert [point.step for point in curve.points] == [0, 4, 8, 12, 16]
        assert (group.model, group.setting, group.split, group.mode) == ("M", "refusal", "test", "generation")
        assert read_curves([run("s", found=found)], "val")[0].curves[0].on_means == (0.0, 0.5)

    def test_a_run_that_was_not_scored_so_names_the_command(self, tmp_path):
        with pytest.raises(InputError, match=r"no checkpoints\.json") as error:
            read_curves([tmp_path])
        assert error.value.where == str(tmp_path)
        assert f"emeval score --model {tmp_path} --checkpoints" in str(error.value)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"points": []}, "'points'"),
            ({"points": [points()[0] | {"on": {"q": 1.5}}]}, r"points\.0\.on\.q"),
            ({"points": [points()[0] | {"mode": "guess"}]}, r"points\.0\.mode"),
            ({"points": points() + points()[:1]}, "step 0 is there 2 times"),
            ({"schema_version": 9}, "schema_version 9"),
        ],
    )
    def test_a_malformed_file_is_named_with_its_field(self, run, change, words):
        folder = run("r", **change)
        with pytest.raises(InputError, match=words) as error:
            read_curves([folder])
        assert str(folder / "checkpoints.json") in str(error.value)

    def test_training_is_told_by_the_scores_else_by_the_manifest(self, run):
        carried = {"id": "x", "train": TREFT | {"model": "M"}}
        assert labels([run("a", SFT, model=carried)]) == ["treft (lambda 100)"]
        assert labels([run("b", SFT)]) == ["sft"]
        assert labels([run("c", None)]) == ["method unknown"]

    def test_models_and_behaviours_are_groups_of_their_own(self, run):
        paths = [run("a"), run("b", SFT | {"model": "N"}), run("c", setting="abstention")]
        assert [group.name for group in read_curves(paths)] == ["M, abstention", "M, refusal", "N, refusal"]

    def test_sft_comes_first_to_compare_with(self, run):
        assert labels([run("a", TREFT), run("b", SFT)]) == ["sft", "treft (lambda 100)"]

    def test_runs_that_differ_in_their_seed_are_one_method(self, run):
        (group,) = read_curves([run("a", SFT | {"seed": 1}), run("b", SFT)])
        assert [curve.seed for curve in group.methods["sft"]] == [0, 1]

    def test_runs_that_differ_in_more_are_not(self, run):
        def trained(**settings):
            return SFT | {"identity": {"settings": {"lr": 2e-4, "batch_size": 8, "lambda": 10} | settings}}

        paths = [run("a", trained()), run("b", trained(lr=1e-3, seed=1) | {"seed": 1})]
        assert labels(paths) == ["sft, lr 0.0002", "sft, lr 0.001"]
        assert labels([run("c", trained()), run("d", trained(seed=1, **{"lambda": 30}) | {"seed": 1})]) == ["sft"]

    def test_the_same_seed_twice_is_no_second_seed(self, run):
        assert labels([run("a"), run("b")]) == ["sft (a)", "sft (b)"]
        first, second = labels([run("x/r"), run("y/r")])
        assert first.endswith("x/r)") and second.endswith("y/r)")

    def test_a_folder_named_twice_is_one_run(self, run, tmp_path):
        assert labels([run("a"), tmp_path / "." / "a"]) == ["sft"]

    def test_generation_is_preferred_where_all_runs_have_it(self, run):
        both = points() + points(mode="probability")
        assert read_curves([run("a", found=both)])[0].mode == "generation"
        assert read_curves([run("b", found=both)], mode="probability")[0].mode == "probability"

    def test_flags_and_probabilities_are_never_mixed(self, run):
        both, cheap = points() + points(mode="probability"), points(mode="probability")
        first, second = run("a", found=both), run("b", TREFT, found=cheap)
        assert read_curves([first, second])[0].mode == "probability"
        with pytest.raises(InputError, match="no generation points on the test split") as error:
            read_curves([first, second], mode="generation")
        assert error.value.where == str(second)

    def test_runs_asked_other_questions_cannot_be_compared(self, run):
        other = [point | {"off": {"else": 1}} for point in points()]
        with pytest.raises(InputError, match="no off-topic question in common"):
            read_curves([run("a"), run("b", TREFT, found=other)])

    def test_folders_with_curves_are_found(self, run, tmp_path):
        folder = run("b"), run("a")
        (tmp_path / "unscored").mkdir()
        assert runs_with_curves(tmp_path) == sorted(folder)
        assert runs_with_curves(tmp_path / "absent") == []


class TestRows:
    def test_each_method_is_shown_at_the_same_level(self, run):
        paths = [run("a"), run("b", TREFT, points(off=[0.4 * share for share in RISE]))]
        table = matched_table(paths, draws=200)
        assert table.columns[6] == "Difference to sft"
        sft, treft = cells(table), cells(table, 1)
        assert (sft["Model"], sft["Setting"], sft["Method"], sft["Seeds"]) == ("M", "refusal", "sft", "0")
        assert sft["On-topic level"] == treft["On-topic level"] == "95"
        assert sft["Off-topic at that level (down is clean)"].startswith("95.0 [")
        assert sft["Difference to sft"] == "–"
        assert treft["Off-topic at that level (down is clean)"].startswith("38.0 [")
        assert treft["Difference to sft"].startswith("-57.0 [")
        assert treft["End of run, on-topic / off-topic"] == "100.0 / 40.0"

    def test_a_difference_within_noise_says_so(self, run):
        off = [share * 0.97 for share in RISE]
        table = matched_table([run("a"), run("b", TREFT, points(off=off))], levels=[0.5], draws=200)
        assert cells(table, 1)["Difference to sft"].endswith("within noise")

    def test_a_level_that_is_not_reached_is_never_extrapolated(self, run):
        paths = [run("a"), run("b", TREFT, points(on=(0.0, 0.1, 0.2, 0.3, 0.4)))]
        table = matched_table(paths, levels=[0.8], draws=50)
        found = cells(table, 1)
        assert found["Off-topic at that level (down is clean)"] == "not reached"
        assert found["Difference to sft"] == "–"
        assert "treft (lambda 100), seed 0: on-topic peaks at 40.0 on test, so 80 is not reached." in note(
            table, "peaks"
        )

    def test_nor_is_one_that_the_first_checkpoint_has_passed(self, run):
        table = matched_table([run("a", found=points()[2:5] + points()[7:])], levels=[0.25], draws=50)
        assert cells(table)["Off-topic at that level (down is clean)"] == "not reached"
        assert "starts at 50.0 (step 8) on test, so 25 is passed before its first checkpoint." in note(table, "starts")

    def test_several_seeds_show_their_range(self, run):
        paths = [run("a"), run("b", SFT | {"seed": 1}, points(off=[share * 0.8 for share in RISE]))]
        table = matched_table(paths, levels=[0.5], draws=100)
        assert len(table.rows) == 1 and cells(table)["Seeds"] == "0, 1"
        shown = cells(table)["Off-topic at that level (down is clean)"]
        assert shown.startswith("45.0 [") and shown.endswith("seeds 40.0 to 50.0")
        assert note(table, "Several seeds", "range")

    def test_without_sft_the_first_method_is_compared_with(self, run):
        paths = [run("a", TREFT), run("b", TREFT | {"lambda": 1000})]
        assert matched_table(paths, draws=20).columns[6] == "Difference to treft (lambda 100)"

    def test_groups_with_other_baselines_do_not_share_a_name(self, run):
        paths = [run("a"), run("b", TREFT, setting="abstention")]
        assert matched_table(paths, draws=20).columns[6] == "Difference to each group's first"

    def test_records_hold_shares_and_what_is_missing_is_none(self, run):
        paths = [run("a"), run("b", TREFT, points(on=[0.5 * share for share in RISE]))]
        sft, treft = matched_table(paths, levels=[0.8], draws=50).records
        assert (sft["level"], sft["off"], sft["n_on"], sft["n_off"]) == (0.8, pytest.approx(0.8), ON, OFF)
        assert sft["difference"] is None and sft["baseline"] == "sft"
        assert (treft["off"], treft["off_low"], treft["difference"], treft["unreached"]) == (None, None, None, 1)
        assert treft["end_on"] == 0.5 and treft["end_on_low"] < 0.5 < treft["end_on_high"]

    @pytest.mark.parametrize("fmt", ["markdown", "csv", "json", "latex"])
    def test_every_format_prints_it(self, run, fmt):
        text = render([matched_table([run("a"), run("b", TREFT)], draws=20)], fmt)
        assert "treft (lambda 100)" in text and "95" in text


PLACE = {"device": "cpu", "dtype": "float32", "threads": 2, "resolved": {"batch_size": 8}}


class TestCost:
    """Table 3: the same, with what training took."""

    def with_cost(self, train, seconds, peak, **more):
        return train | PLACE | {"results": {"step_seconds": seconds, "peak_memory_bytes": peak}} | more

    def test_is_told_as_multiples_of_the_first_method(self, run):
        paths = [
            run("a", self.with_cost(SFT, 2.0, 4e9)),
            run("b", self.with_cost(SFT | {"seed": 1}, 4.0, 4e9)),
            run("c", self.with_cost(TREFT, 2.25, 6e9)),
        ]
        table = matched_table(paths, draws=20, costs=True)
        assert table.number == 3 and table.title.startswith("Regularisers: off-topic at the same on-topic value")
        assert [row[-2].text for row in table.rows] == ["1.00x", "0.75x"]
        assert [row[-1].text for row in table.rows] == ["1.00x", "1.50x"]
        assert table.records[1]["table"] == 3 and table.records[1]["seconds_a_step"] == 2.25
        assert note(table, "Step time", "multiples of the first")

    def test_is_not_compared_between_machines_or_where_it_is_unknown(self, run):
        paths = [
            run("a", self.with_cost(SFT, 2.0, 4e9)),
            run("b", self.with_cost(TREFT, 1.0, 4e9, device="cuda")),
            run("c", TREFT | {"lambda": 5}),
        ]
        table = matched_table(paths, draws=20, costs=True)
        assert {row[2].text: row[-2].text for row in table.rows} == {
            "sft": "1.00x", "treft (lambda 100)": "–", "treft (lambda 5)": "–",
        }  # fmt: skip

    def test_a_default_is_what_was_said_outright_before(self, run):
        said = {"resolved": {"batch_size": 8, "shared_prefix": True}}
        paths = [run("a", self.with_cost(SFT, 2.0, 4e9, **said)), run("b", self.with_cost(TREFT, 1.0, 4e9))]
        assert [row[-2].text for row in matched_table(paths, draws=20, costs=True).rows] == ["1.00x", "0.50x"]
        on_a_gpu = [
            run("c", self.with_cost(SFT, 2.0, 4e9, device="cuda", **said)),
            run("d", self.with_cost(TREFT, 1.0, 4e9, device="cuda")),
        ]
        assert matched_table(on_a_gpu, draws=20, costs=True).rows[1][-2].text == "–"

    def test_seeds_from_two_machines_have_no_mean(self, run):
        paths = [
            run("a", self.with_cost(SFT, 2.0, 4e9)),
            run("b", self.with_cost(SFT | {"seed": 1}, 1.0, 4e9, threads=1)),
        ]
        assert matched_table(paths, draws=20, costs=True).rows[0][-2].text == "–"


class TestTheLevel:
    def test_is_chosen_on_val_and_read_on_test(self, run):
        val = points(on=[0.83 * share for share in RISE], splits=("val",))
        table = matched_table([run("a", found=val + points(splits=("test",)))], draws=50)
        assert cells(table)["On-topic level"] == "80"
        assert "level 80, the highest of 50, 60, 70, 75, 80, 85, 90, 95 that all runs cross on val" in note(
            table, "cross on val"
        )
        assert f"{ON} questions on-topic, {OFF} off-topic" in note(table, "cross on val")

    def test_without_val_points_the_command_that_makes_them_is_named(self, run):
        folder = run("a", found=points(splits=("test",)))
        with pytest.raises(InputError, match="no generation points on the val split") as error:
            matched_table([folder])
        assert f"emeval score --model {folder} --checkpoints --split val" in str(error.value)

    def test_may_be_given_and_then_the_note_says_that_it_was(self, run):
        table = matched_table([run("a", found=points(splits=("test",)))], levels=[0.5, 0.8], draws=50)
        assert [row[4].text for row in table.rows] == ["50", "80"]
        assert note(table, "level 50, 80 as asked for, not chosen on val")

    def test_where_there_is_none_only_the_ends_are_shown_and_why(self, run):
        low = points(on=[0.4 * share for share in RISE])
        table = matched_table([run("a"), run("b", TREFT, low)], draws=50)
        found = cells(table)
        assert (found["On-topic level"], found["Off-topic at that level (down is clean)"]) == ("–", "no common level")
        assert found["End of run, on-topic / off-topic"] == "100.0 / 100.0"
        assert table.records[0]["off"] is None
        assert note(table, "not matched, none of the levels")
        assert "on-topic peaks at 40.0 on val" in note(table, "peaks", "treft")

    def test_probabilities_are_compared_at_lower_levels_too(self, run):
        low = points(on=[0.45 * share for share in RISE], mode="probability")
        table = matched_table([run("a", found=low), run("b", TREFT, low)], draws=50)
        assert cells(table)["On-topic level"] == "45"

    def test_domains_are_told_by_their_own_names(self, run):
        found = points(mode="contrast")
        table = matched_table([run("a", found=found), run("b", TREFT, found)], draws=50)
        assert table.number == 1 and table.title == "General at the same in-domain value, percent"
        assert cells(table)["In-domain level"] == "95" and "End of run, in-domain / general" in table.columns
        assert f"{ON} questions in-domain, {OFF} general" in note(table, "cross on val")
        assert "-topic" not in "".join(table.notes)

    def test_and_their_table_has_the_shares_before_and_at_the_end(self, run):
        found = points(on=(0.1, 0.4, 0.9), off=(0.0, 0.1, 0.2), mode="contrast")
        more = points(on=(0.1, 0.3, 0.7), off=(0.0, 0.1, 0.2), mode="contrast")
        table = matched_table([run("a", found=found), run("b", SFT | {"seed": 1}, more)], draws=50)
        # flags of 1 prefer the misaligned reply: 10 and 30 % of the in-domain pairs still prefer the aligned one
        id_, em = 20.0, 80.0
        f1 = 2 * (100 - id_) * em / ((100 - id_) + em)
        assert cells(table)["Contrast ID, EM, EM-F1 at the end"].startswith(f"{id_:.1f}, {em:.1f}, {f1:.1f} [")
        assert table.records[0]["contrast_em_f1"] == pytest.approx(f1)
        assert "untouched model 90.0, 100.0, 18.2 [" in note(table, "untouched")

    def test_val_and_test_are_of_one_mode(self, run):
        found = points(splits=("test",)) + points(mode="probability")
        assert matched_table([run("a", found=found)], draws=20).records[0]["mode"] == "probability"


class TestNotes:
    def test_say_how_it_was_matched(self, run):
        table = matched_table([run("a")], draws=77)
        assert note(table, "Matched", "first reaches the level", "nothing is extrapolated")
        assert note(table, "Brackets", "77 draws", "no error from the seed")
        assert "Split: test." in table.notes
        assert note(table, "generated replies")

    def test_probabilities_are_not_called_rates(self, run):
        table = matched_table([run("a", found=points(mode="probability"))], draws=20)
        assert note(table, "teacher-forced probability", "no replies were generated")

    def test_reading_on_val_is_warned_of(self, run):
        assert note(matched_table([run("a")], "val", draws=20), "Warning", "val")

    def test_the_dose_trap_is_pointed_out(self, run):
        slow = points(on=[0.6 * share for share in RISE], off=[0.6 * share for share in RISE])
        table = matched_table([run("a"), run("b", TREFT, slow)], draws=100)
        assert "treft (lambda 100) leaks 40.0 points less (beyond noise) than sft at the end" in note(table, "verdict")
        worse = points(on=[0.6 * share for share in RISE], off=[0.9 * share for share in RISE])
        table = matched_table([run("c"), run("d", TREFT, worse)], draws=100)
        assert note(table, "The order differs", "level 60")

    def test_no_disagreement_no_note(self, run):
        table = matched_table([run("a"), run("b", TREFT)], draws=50)
        assert not [text for text in table.notes if "differs" in text]

    def test_open_intervals_are_marked(self, run):
        table = matched_table([run("a", found=points(on=(0.0, 0.2, 0.4, 0.6, 0.8)))], levels=[0.8], draws=200)
        assert cells(table)["Off-topic at that level (down is clean)"].endswith(" open")
        assert note(table, "M, refusal, sft: open", "of the draws do not cross 80")

    def test_questions_that_not_all_have_are_counted(self, run):
        found = points()
        del found[7]["on"]["a00"], found[9]["off"]["b00"]
        table = matched_table([run("a", found=found)], draws=20)
        assert note(table, "2 questions left out")
        assert (table.records[0]["n_on"], table.records[0]["n_off"]) == (ON - 1, OFF - 1)

    def test_few_questions_are_warned_of(self, run):
        few = [point | {"on": dict(list(point["on"].items())[::4])} for point in points()]
        assert note(matched_table([run("a", found=few)], draws=20), "few questions")

    def test_one_method_alone_is_no_comparison(self, run):
        assert note(matched_table([run("a")], draws=20), "one method, nothing to compare it with")

    def test_no_runs_no_rows(self):
        table = matched_table([])
        assert table.rows == () and table.notes == ("No runs scored at their checkpoints.",)
