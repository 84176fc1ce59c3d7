"""A run folder becomes one row, or an error that says what to do."""

import json

import pytest

from emeval.errors import InputError
from emeval.table.rows import counterparts, default_runs, labels_of, on_topic_gap, paired, read_rows


def rewrite(folder, file, **changes):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def one(folder):
    (row,) = read_rows([folder])
    return row


class TestARow:
    def test_a_trained_run(self, write_run, treft):
        row = one(write_run("r1", treft))
        assert (row.model, row.setting, row.method, row.run) == ("M", "refusal", "treft (lambda 10)", "r1")
        assert row.on_topic.rate.value == 39 / 40
        assert row.off_topic.rate.value == 55 / 60
        assert row.marks == ()

    @pytest.mark.parametrize(
        ("changes", "label"),
        [
            ({"method": "sft"}, "sft"),
            ({"method": "sft", "lambda": 0}, "sft"),
            ({"method": "interleave"}, "interleave"),
            ({"method": "treft", "lambda": 0.5}, "treft (lambda 0.5)"),
            ({"method": "treft", "lambda": 10.0, "region": "prefix"}, "treft (lambda 10)"),
            ({"method": "treft", "lambda": 10, "region": "query"}, "treft (query, lambda 10)"),
            ({"method": "treft", "lambda": 10, "drift": "released"}, "treft (lambda 10, released drift)"),
            ({"method": "kl-train", "lambda": 50}, "kl-train (lambda 50)"),
            ({"method": "treft"}, "treft"),
            ({}, "method unknown"),
        ],
    )
    def test_the_label_says_what_sets_a_method_apart(self, write_run, changes, label):
        assert one(write_run("r", changes)).method == label

    def test_no_training_is_the_initial_model(self, write_run):
        assert one(write_run("base", None)).method == "initial model"

    def test_an_arm_is_named_beside_its_method(self, write_run, sft):
        row = one(write_run("p", sft, arm="prefix from the initial model"))
        assert row.method == "sft + prefix from the initial model"
        assert row.plain_method == "sft"

    def test_an_arm_scored_into_its_own_folder_brings_the_record_of_its_run(self, write_run, treft):
        row = one(write_run("trained-patched", arm="patched", model={"id": "trained", "train": treft}))
        assert (row.model, row.method) == ("M", "treft (lambda 10) + patched")

    @pytest.mark.parametrize("changes", [{"arm": "patched"}, {"model": {"id": "x", "adapter": "found"}}])
    def test_what_is_not_plainly_untrained_is_not_called_initial(self, write_run, changes):
        assert one(write_run("r", **changes)).plain_method == "method unknown"

    @pytest.mark.parametrize("name", ["..", "../trained", "/etc", "org/name", ""])
    def test_a_model_name_is_no_path(self, write_run, tmp_path, sft, name):
        (tmp_path / "manifest.json").write_text(json.dumps({"train": sft}))
        assert one(write_run("r", model={"id": name})).method == "initial model"

    def test_a_trained_run_stands_beside_the_model_it_started_from(self, write_run, sft):
        assert one(write_run("r", sft | {"model": "base"}, model={"id": "adapter"})).model == "base"

    def test_an_unscored_probe_is_absent_not_zero(self, write_run):
        assert one(write_run("r", off=None)).off_topic is None

    def test_the_test_split_comes_before_val(self, write_run):
        folder = write_run("r", on_changes={"split": "val"})
        scores = json.loads((folder / "scores.json").read_text())
        again = scores["probes"][0] | {"split": "test", "expected": 41}
        rewrite(folder, "scores.json", probes=[*scores["probes"], again])
        row = one(folder)
        assert (row.on_topic.split, row.on_topic.expected) == ("test", 41)
        assert row.on_flags == {}  # those in the file are val's

    def test_unknown_keys_of_the_manifest_are_ignored(self, write_run, sft):
        folder = rewrite(write_run("r", sft | {"rank": 32}), "manifest.json", packages={"torch": "2"})
        assert one(folder).method == "sft"

    def test_a_manifest_may_leave_everything_out(self, write_run):
        folder = write_run("r")
        (folder / "manifest.json").write_text("{}")
        assert one(folder).method == "initial model"

    def test_without_a_manifest_the_method_is_unknown_rather_than_none(self, write_run):
        folder = write_run("r")
        (folder / "manifest.json").unlink()
        row = one(folder)
        assert row.method == "method unknown"
        assert row.marks == ("no record of how it was trained",)


class TestMarks:
    def test_an_endpoint_with_its_own_template(self, write_run):
        assert one(write_run("r", token_prompts=False)).marks == ("endpoint renders its own template",)

    def test_coverage_under_95_percent(self, write_run):
        row = one(write_run("r", on_changes={"outcomes": {"scored": 36, "parse-error": 2}, "expected": 40}))
        assert row.marks == ("on-topic coverage 0.90, under 0.95",)

    def test_a_refusal_is_an_answer_and_costs_no_coverage(self, write_run):
        assert one(write_run("r", on_changes={"outcomes": {"scored": 30, "refusal": 10}})).marks == ()

    def test_few_clusters(self, write_run):
        clustered = {"value": 0.5, "low": 0.1, "high": 0.9, "n": 7, "method": "t-clustered"}
        row = one(write_run("r", off_changes={"measures": {"rate": clustered}}))
        assert row.marks == ("off-topic: few clusters (G = 7)",)

    def test_scored_on_a_setting_it_was_not_trained_on(self, write_run, sft):
        assert one(write_run("r", sft | {"setting": "brevity"})).marks == ("trained on brevity",)

    def test_a_second_judge_is_not_shown_but_told(self, write_run):
        folder = write_run("r", off=None)
        score = json.loads((folder / "scores.json").read_text())["probes"][0]
        row = one(rewrite(folder, "scores.json", probes=[score, score | {"judge": "llm"}]))
        assert row.marks == ("on-topic has 2 judges, shown is rule:refusal",)


class TestErrors:
    def test_not_scored_names_the_folder_and_the_command(self, tmp_path):
        folder = tmp_path / "fresh"
        folder.mkdir()
        with pytest.raises(InputError, match=f"{folder}.*emeval score --model {folder}"):
            read_rows([folder])

    @pytest.mark.parametrize("text", ["{", "[]", '"x"', "", '{"schema_version": NaN}', "\udc80"])
    @pytest.mark.parametrize("file", ["scores.json", "manifest.json"])
    def test_what_is_not_a_json_object_names_the_file(self, write_run, file, text):
        folder = write_run("r")
        (folder / file).write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(InputError) as caught:
            read_rows([folder])
        assert caught.value.where == str(folder / file)
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize("version", [0, 2, "1", None])
    def test_another_schema_version_is_refused(self, write_run, version):
        with pytest.raises(InputError, match="schema_version"):
            read_rows([write_run("r", schema_version=version)])

    def test_a_field_of_the_wrong_kind_is_named(self, write_run):
        with pytest.raises(InputError, match=r"field 'probes\.0\.expected'"):
            read_rows([write_run("r", on_changes={"expected": "many"})])

    def test_questions_asked_several_times_hold_the_share_of_their_replies(self, write_run):
        assert one(write_run("r", values={"on-topic/test": {"q1": 0.25}})).on_flags == {"q1": 0.25}

    def test_flags_lie_between_0_and_1(self, write_run):
        with pytest.raises(InputError, match="values"):
            read_rows([write_run("r", values={"on-topic/test": {"q1": 2}})])


class TestOrder:
    def test_initial_sft_interleave_treft_by_lambda_kl_and_arms_after_their_method(self, write_run, sft):
        def trained(method, lam=None):
            return sft | {"method": method, "lambda": lam}

        folders = [
            write_run("a", trained("kl-retain", 50)),
            write_run("b", trained("treft", 100)),
            write_run("c", trained("treft", 10)),
            write_run("d", trained("interleave")),
            write_run("e", trained("sft"), arm="prefix from the initial model"),
            write_run("f", trained("sft")),
            write_run("g"),
            write_run("h", trained("kl-train", 50)),
        ]
        assert [row.method for row in read_rows(folders)] == [
            "initial model",
            "sft",
            "sft + prefix from the initial model",
            "interleave",
            "treft (lambda 10)",
            "treft (lambda 100)",
            "kl-train (lambda 50)",
            "kl-retain (lambda 50)",
        ]

    def test_grouped_by_model_and_setting(self, write_run, sft):
        folders = [
            write_run("a", sft | {"model": "B"}),
            write_run("b", sft | {"model": "A", "setting": "tool-use"}, setting="tool-use"),
            write_run("c", model={"id": "B"}),
            write_run("d", sft | {"model": "A"}),
        ]
        found = [(row.model, row.setting, row.method) for row in read_rows(folders)]
        assert found == [
            ("A", "refusal", "sft"),
            ("A", "tool-use", "sft"),
            ("B", "refusal", "initial model"),
            ("B", "refusal", "sft"),
        ]

    def test_default_runs_are_the_scored_ones(self, write_run, tmp_path):
        second, first = write_run("b"), write_run("a")
        (tmp_path / "unscored").mkdir()
        assert default_runs(tmp_path) == [first, second]
        assert default_runs(tmp_path / "nowhere") == []


class TestComparing:
    def test_sft_with_each_method_and_a_method_with_its_arms(self, write_run, sft, treft):
        runs = [write_run("base"), write_run("s", sft), write_run("t", treft), write_run("p", treft, arm="patched")]
        pairs = [(a.run, b.run) for a, b in counterparts(read_rows(runs))]
        assert pairs == [("s", "t"), ("t", "p")]

    def test_runs_of_equal_seed_are_compared(self, write_run, sft, treft):
        runs = [write_run(f"{t['method']}{seed}", t | {"seed": seed}) for t in (sft, treft) for seed in (0, 1)]
        pairs = [(a.run, b.run) for a, b in counterparts(read_rows(runs))]
        assert pairs == [("sft0", "treft0"), ("sft1", "treft1")]

    def test_nothing_is_compared_across_models_or_settings(self, write_run, sft, treft):
        assert counterparts(read_rows([write_run("s", sft), write_run("t", treft | {"model": "other"})])) == []

    def test_the_difference_is_paired_by_question(self, write_run, sft, treft):
        a, b = read_rows([write_run("s", sft, off=(50, 60)), write_run("t", treft, off=(20, 60))])
        found = paired(a, b, "off-topic")
        assert (found.value, found.n) == (0.5, 60)

    @pytest.mark.parametrize("changes", [{"split": "val"}, {"judge": "llm"}])
    def test_another_split_or_judge_cannot_be_paired(self, write_run, sft, treft, changes):
        a, b = read_rows([write_run("s", sft), write_run("t", treft, off_changes=changes)])
        assert paired(a, b, "off-topic") is None

    def test_without_flags_the_on_topic_gap_is_that_of_the_rates(self, write_run, sft, treft):
        a, b = read_rows([write_run("s", sft, on=(40, 40)), write_run("t", treft, on=(30, 40), values={})])
        assert paired(a, b, "on-topic") is None
        assert on_topic_gap(a, b) == 0.25

    def test_rows_that_look_the_same_are_told_apart_by_seed_or_run(self, write_run, sft, treft):
        seeds = [write_run(f"s{seed}", sft | {"seed": seed}) for seed in (0, 1)]
        same = [write_run(name, treft) for name in ("t1", "t2")]
        labels = labels_of(read_rows(seeds + same))
        assert labels == ["sft, seed 0", "sft, seed 1", "treft (lambda 10) (t1)", "treft (lambda 10) (t2)"]
