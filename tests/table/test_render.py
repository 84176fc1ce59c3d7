"""What a reader sees: rates with intervals, nothing hidden, nothing from a run able to break the page."""

import csv
import io
import json
import subprocess
import sys

import pytest

from emeval.errors import InputError
from emeval.table.render import Cell, Table, clean, leakage_table, render
from emeval.table.rows import read_rows

HOSTILE = 'a|b\x1b[31m\n<script> 50% x_y & $\\cmd [z](u) "q"\u202e\x00'


def leakage(*folders):
    return leakage_table(read_rows(folders))


def cells(table, row=0):
    return dict(zip(table.columns, [cell.text for cell in table.rows[row]], strict=True))


def note(table, *words):
    """The one note that holds all the words."""
    (found,) = [text for text in table.notes if all(word in text for word in words)]
    return found


class TestCells:
    def test_rates_are_percents_with_their_interval(self, write_run, sft):
        assert cells(leakage(write_run("r", sft))) == {
            "Model": "M",
            "Behaviour": "refusal",
            "Method": "sft",
            "On-topic (up is learned)": "97.5 [87.1, 99.6]",
            "Off-topic (down is clean)": "91.7 [81.9, 96.4]",
            "n": "on 40/40, off 60/60",
            "outcomes": "all scored",
        }

    def test_missing_is_a_dash_never_zero(self, write_run):
        table = leakage(write_run("r", off=None, on=(0, 0)))
        found = cells(table)
        assert found["On-topic (up is learned)"] == found["Off-topic (down is clean)"] == "–"
        assert found["n"] == "on 0/0, off –"
        assert found["outcomes"] == "off: not scored"

    def test_a_rate_of_zero_is_a_zero(self, write_run):
        assert cells(leakage(write_run("r", off=(0, 60))))["Off-topic (down is clean)"].startswith("0.0 [0.0, ")

    def test_every_reply_that_is_not_plainly_scored_is_spelled(self, write_run):
        outcomes = {"scored": 30, "refusal": 1, "code": 2, "parse-error": 3, "api-error": 1}
        changes = {"outcomes": outcomes, "truncated": 4, "foreign_prefix": 5}
        found = cells(leakage(write_run("r", on_changes=changes, off_changes={"truncated": 1})))
        assert found["outcomes"] == (
            "on: 4 truncated, 1 refusal, 2 code, 3 parse-error, 1 api-error, 3 missing, 5 foreign prefix; "
            "off: 1 truncated"
        )
        assert found["n"] == "on 30/40, off 60/60"


class TestNotes:
    def test_what_the_brackets_are(self, write_run):
        assert "Brackets: 95% Wilson." in leakage(write_run("r")).notes

    def test_the_test_split_is_named(self, write_run):
        assert "Split: test." in leakage(write_run("r")).notes

    def test_another_split_is_marked_and_warned_of(self, write_run):
        table = leakage(write_run("r", on_changes={"split": "val"}))
        assert cells(table)["On-topic (up is learned)"] == "97.5 [87.1, 99.6] (val)"
        assert note(table, "Warning", "(val)")

    def test_marks_stand_under_the_table(self, write_run, sft):
        table = leakage(write_run("r", sft, token_prompts=False))
        assert "M, refusal, sft: endpoint renders its own template." in table.notes

    def test_the_off_topic_difference_is_paired_with_its_interval(self, write_run, sft, treft):
        table = leakage(write_run("s", sft, off=(50, 60)), write_run("t", treft, off=(20, 60)))
        # 30 differences of 1 and 30 of 0: s = 0.50422, standard error 0.065094, t(59) = 2.000995
        expected = "sft minus treft (lambda 10), off-topic: 50.0 [37.0, 63.0] points, paired on 60 questions."
        assert note(table, "off-topic:") == f"M, refusal, {expected}"

    def test_a_difference_whose_interval_holds_zero_is_within_noise(self, write_run, sft, treft):
        table = leakage(write_run("s", sft, off=(50, 60)), write_run("t", treft, off=(49, 60)))
        assert note(table, "off-topic:").endswith("paired on 60 questions, within noise.")

    def test_equal_replies_on_every_question_have_no_interval(self, write_run, sft, treft):
        table = leakage(write_run("s", sft), write_run("t", treft))
        assert "0.0 points on every question, paired on 60 questions, within noise" in note(table, "off-topic:")

    def test_questions_that_only_one_run_answered_are_told(self, write_run, sft, treft):
        table = leakage(write_run("s", sft, off=(50, 60)), write_run("t", treft, off=(20, 50)))
        assert "paired on 50 questions that both answered (of 60 and 50)" in note(table, "off-topic:")

    def test_runs_that_cannot_be_paired_are_not_compared(self, write_run, sft, treft):
        table = leakage(write_run("s", sft), write_run("t", treft, off_changes={"judge": "llm"}))
        assert "share no question" in note(table, "off-topic: not compared")

    @pytest.mark.parametrize(
        ("first", "second", "warned"),
        [
            ((40, 40), (40, 40), False),
            ((40, 40), (38, 40), False),  # 5.0 points, and the interval holds 0
            ((40, 40), (37, 40), True),  # 7.5 points
            ((400, 400), (390, 400), True),  # 2.5 points, but beyond noise
        ],
    )
    def test_unequal_learning_makes_the_comparison_unfair(self, write_run, sft, treft, first, second, warned):
        table = leakage(write_run("s", sft, on=first), write_run("t", treft, on=second))
        assert any("not a fair comparison" in text for text in table.notes) is warned

    def test_seeds_are_summed_up_by_mean_and_range(self, write_run, sft):
        runs = [write_run(f"s{i}", sft | {"seed": i}, off=(hits, 60)) for i, hits in enumerate((30, 36, 42))]
        assert "mean and range over 3 seeds: on-topic 97.5 [97.5, 97.5], off-topic 60.0 [50.0, 70.0]" in note(
            leakage(*runs), "seeds"
        )

    def test_no_runs(self):
        assert leakage_table([]).notes == ("No scored runs.",)
        assert render([leakage_table([])]).startswith("**Table 2.")


class TestClean:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("plain name", "plain name"),
            ("red\x1b[31m\x1b[0m", "red"),
            ("link\x1b]8;;http://x\x07here", "linkhere"),
            ("two\nlines\tand\r\nmore\u2028", "two lines and more"),
            ("bell\x07 del\x7f c1\x9b nul\x00", "bell del c1 nul"),
            ("bidi\u202eevil zero\u200bwidth", "bidievil zerowidth"),
            ("lone \ud800 surrogate", "lone surrogate"),
            ("Grüße – 模型", "Grüße – 模型"),
        ],
    )
    def test_one_harmless_line(self, text, expected):
        assert clean(text) == expected


class TestFormats:
    def hostile(self, write_run, sft):
        return leakage(write_run("r", sft | {"model": HOSTILE}))

    @pytest.mark.parametrize("fmt", ["markdown", "csv", "json", "latex"])
    def test_no_format_lets_control_codes_through(self, write_run, sft, fmt):
        text = render([self.hostile(write_run, sft)], fmt)
        assert not any(ord(char) < 32 and char != "\n" for char in text)
        assert "\u202e" not in text and "[31m" not in text

    def test_markdown_golden(self):
        rows = ((Cell("a|b"), Cell("1.0", best=True)), (Cell("c"), Cell("–")))
        table = Table(number=9, title="T", columns=("Name", "x"), rows=rows, records=(), notes=("N.",))
        assert render([table]) == (
            "**Table 9. T**\n\n| Name | x       |\n|------|---------|\n| a\\|b | **1.0** |\n| c    | –       |\n\n- N."
        )

    def test_markdown_columns_are_aligned_and_pipes_escaped(self, write_run, sft):
        text = render([self.hostile(write_run, sft), leakage(write_run("plain"))][:1])
        grid = [line for line in text.splitlines() if line.startswith("|")]
        assert len({len(line) for line in grid}) == 1
        assert all(line.replace("\\|", "").count("|") == 8 for line in grid)
        assert "\\<script>" in text and "[z]\\(u)" in text

    def test_latex_is_booktabs_and_escaped(self, write_run, sft):
        text = render([self.hostile(write_run, sft)], "latex")
        assert r"\toprule" in text and r"\midrule" in text and r"\bottomrule" in text
        assert r"a\textbar{}b \textless{}script\textgreater{} 50\% x\_y \& \$\textbackslash{}cmd {[}z{]}(u)" in text
        assert text.count("{") == text.count("}")

    def test_latex_marks_the_best_and_keeps_brackets_from_line_ends(self):
        rows = ((Cell("[x]", best=True), Cell("–")),)
        table = Table(number=1, title="T", columns=("a", "b"), rows=rows, records=(), notes=())
        assert r"\textbf{{[}x{]}} & -- \\" in render([table], "latex")

    def test_csv_has_one_numeric_row_per_run_and_probe(self, write_run, sft):
        text = render([leakage(write_run("r", sft, off=None))], "csv")
        on, off = csv.DictReader(io.StringIO(text))
        assert (on["run"], on["probe"], on["method"], on["seed"], on["steps"]) == ("r", "on-topic", "sft", "0", "24")
        assert (float(on["rate"]), int(on["n"]), int(on["asked"]), int(on["missing"])) == (0.975, 40, 40, 0)
        assert float(on["low"]) == pytest.approx(0.8712, abs=1e-4)
        assert off["probe"] == "off-topic"
        assert {off[name] for name in ("rate", "low", "n", "asked", "scored", "missing", "coverage")} == {""}

    def test_csv_runs_no_formula(self, write_run, sft):
        text = render([leakage(write_run("r", sft | {"model": "=cmd()"}))], "csv")
        assert next(csv.DictReader(io.StringIO(text)))["model"] == "'=cmd()"

    def test_json_is_one_object_with_numbers(self, write_run, sft):
        found = json.loads(render([leakage(write_run("r", sft, off=None))], "json"))
        assert (found["schema_version"], found["table"]) == (1, 2)
        on, off = found["rows"]
        assert on["rate"] == 0.975 and on["interval"] == "wilson" and on["parse_error"] == 0
        assert off["rate"] is None and off["scored"] is None
        assert on.keys() == off.keys()
        assert "Split: test." in found["notes"]

    def test_several_tables_are_still_one_object_and_one_frame(self, write_run):
        table = leakage(write_run("r"))
        assert len(json.loads(render([table, table], "json"))["tables"]) == 2
        assert len(list(csv.DictReader(io.StringIO(render([table, table], "csv"))))) == 4

    def test_an_unknown_format_is_a_usage_error(self):
        with pytest.raises(InputError, match="Did you mean 'latex'"):
            render([], "latx")


def test_importing_the_tables_stays_light():
    code = "import sys, emeval.table.render, emeval.table.paper; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"scipy", "statsmodels", "pandas", "numpy"} & set(loaded)
