"""The paper's tables as printed, and beside them what its figures do not bear out, computed from the figures."""

import json
import shutil
from pathlib import Path

import pytest

from emeval.errors import InputError
from emeval.table.paper import beside, paper_tables
from emeval.table.render import Cell, Table, render
from emeval.table.rows import RunRow, Train

ROOT = Path(__file__).parents[2]


def table(which):
    (found,) = paper_tables(which, ROOT)
    return found


def notes(which):
    return "\n".join(table(which).notes)


def grid(which):
    return [[cell.text for cell in row] for row in table(which).rows]


def bold(which):
    return {(row[0].text, row[1].text, i) for row in table(which).rows for i, cell in enumerate(row) if cell.best}


@pytest.fixture
def altered(tmp_path):
    """A data root whose figures the test has changed."""

    def alter(change):
        data = json.loads((ROOT / "results/paper/paper.json").read_text())
        change(data)
        (tmp_path / "results/paper").mkdir(parents=True)
        (tmp_path / "results/paper/paper.json").write_text(json.dumps(data))
        return tmp_path

    return alter


def cell_of(data, *key):
    (found,) = [c for c in data["table1"]["cells"] if (c["model"], c["method"], c["domain"]) == key]
    return found


@pytest.mark.parametrize("which", ["1", "2", "3"])
def test_each_table_says_first_that_the_figures_are_not_ours(which):
    assert table(which).notes[0].startswith("Source: the paper's figures")
    assert "none of them was measured by emeval" in table(which).notes[0]


def test_all_is_the_three_in_order():
    assert [found.number for found in paper_tables("all", ROOT)] == [1, 2, 3]


@pytest.mark.parametrize("fmt", ["markdown", "csv", "json", "latex"])
def test_every_format_prints_them(fmt):
    assert render(paper_tables("all", ROOT), fmt)


class TestTable1:
    def test_a_row_as_printed(self):
        assert ["Qwen-2.5-7B", "sft", "50.1", "44.7", "53.5", "68.6", "-0.5", "-0.5, -1.8, -1.1, +0.6"] in grid("1")
        assert len(grid("1")) == 12

    def test_records_hold_all_48_cells_with_the_recomputed_figure(self):
        records = table("1").records
        assert len(records) == 48
        assert all(abs(r["em_f1"] - r["em_f1_recomputed"]) < 0.15 for r in records)

    def test_the_best_of_a_model_is_bold_also_where_it_is_not_treft(self):
        assert ("Qwen-2.5-32B", "interleave", 3) in bold("1")
        assert ("Qwen-2.5-32B", "treft", 3) not in bold("1")
        assert ("Llama-3.1-8B", "treft", 4) in bold("1")

    def test_the_cell_that_treft_does_not_win(self):
        assert "holds in 15 of 16: not in Qwen-2.5-32B health, treft 83.0 under interleave 83.9" in notes("1")

    def test_that_cell_is_found_not_named(self, altered):
        root = altered(lambda data: cell_of(data, "Llama-3.1-8B", "treft", "auto").update(em_f1=60.0))
        found = "\n".join(paper_tables("1", root)[0].notes)
        assert "holds in 14 of 16: not in Llama-3.1-8B auto, treft 60.0 under interleave 70.2; Qwen-2.5-32B" in found
        assert "Llama-3.1-8B treft auto is off by" in found

    def test_a_tie_is_a_win(self, altered):
        root = altered(lambda data: cell_of(data, "Qwen-2.5-32B", "treft", "health").update(em_f1=83.9))
        assert "holds in 16 of 16." in "\n".join(paper_tables("1", root)[0].notes)

    def test_the_claimed_gain_recomputes_and_is_set_in_place(self):
        assert "(85.6 - 64.1)/64.1 = 33.5%" in notes("1")
        assert "ID rises there from 15.3 to 27.7, so EM-F1 gains 7.4%" in notes("1")
        assert "median 9.2%, from -25.1% to 47.2%" in notes("1")

    def test_the_largest_deviation_of_em_f1(self):
        assert "all 48 cells: largest deviation 0.09 (Qwen-2.5-32B sft legal)" in notes("1")

    def test_the_single_utility_column_and_its_exceptions(self):
        assert "is the auto column, but for Qwen-2.5-7B sft (it is finance's)." in notes("1")
        assert "delta-Util of Qwen-2.5-32B treft legal: -0.3 in the paper, -0.4 on the page." in notes("1")
        assert "does not state its scale" in notes("1")

    def test_ids_that_gpt_oss_shares_with_other_models(self):
        (found,) = [text for text in table("1").notes if "Table 18" in text]
        assert "sft finance 32.2 (Qwen-2.5-7B and GPT-OSS-20B)" in found
        assert "sft health 15.8 (Qwen-2.5-7B and GPT-OSS-20B)" in found
        assert "sft auto 25.1 (Llama-3.1-8B and GPT-OSS-20B)" in found
        assert "sft legal 13.3 and 13.4, EM 47.5 and 47.4 (Llama-3.1-8B and GPT-OSS-20B)" in found
        assert found.count("GPT-OSS-20B") == 4

    def test_the_shared_values_of_table_10(self):
        (found,) = [text for text in table("1").notes if "Table 10" in text]
        assert found.endswith("share general_patched 86.3, id_sft 35.4, id_patched 61.8.")

    def test_learning_is_compared_too(self):
        assert "treft's ID lies above sft's in 12 of 16 cells" in notes("1")


class TestTable2:
    def test_a_row_as_printed(self):
        assert ["Qwen-2.5-7B", "refusal", "sft", "100", "91"] in grid("2")
        assert len(grid("2")) == 6

    def test_the_claimed_drop_recomputes_from_rounded_rates(self):
        assert "recomputes to 54.4% (abstention 70.6%, tool-use 44.2%, refusal 48.4%)" in notes("2")
        assert "consistent with the rounding" in notes("2")

    def test_a_claim_that_does_not_follow_is_said_not_to(self, altered):
        root = altered(lambda data: data["table2"]["cells"][1].update(off_topic=0.5))
        assert "not consistent with the rounding" in "\n".join(paper_tables("2", root)[0].notes)

    def test_a_ceiling_is_told(self):
        assert "ceiling for every method in abstention, refusal" in notes("2")


class TestTable3:
    def test_rows_as_printed_with_the_best_of_each_column(self):
        assert ["treft-prefix", "85.6", "27.7", "78.4"] in grid("3")
        best = {row[0].text: i for row in table("3").rows for i, cell in enumerate(row) if cell.best}
        assert best == {"treft-all": 1, "sft": 2, "treft-prefix": 3}

    def test_a_high_em_without_learning_is_told(self):
        assert "treft-query (ID 79.0), treft-all (ID 76.9)" in notes("3")

    def test_the_remark_on_postfix_has_no_row(self):
        assert "no postfix row stands behind it" in notes("3")
        assert "mean EM 46.8 to 69.2 and mean ID 20.0 to 24.8" in notes("3")

    def test_with_a_postfix_row_the_note_goes(self, altered):
        row = {"method": "treft-postfix", "em": 90.0, "id": 70.0, "em_f1": 45.0}
        root = altered(lambda data: data["table3"]["cells"].append(row))
        assert "postfix row" not in "\n".join(paper_tables("3", root)[0].notes)

    def test_lambdas_may_not_transfer(self):
        assert "need not transfer" in notes("3")


class TestErrors:
    def test_an_unknown_table(self):
        with pytest.raises(InputError, match="unknown table '4'"):
            paper_tables("4", ROOT)

    def test_no_figures_there(self, tmp_path):
        with pytest.raises(InputError, match="--data-dir"):
            paper_tables("1", tmp_path)

    def test_broken_figures(self, tmp_path):
        shutil.copytree(ROOT / "results/paper", tmp_path / "results/paper")
        (tmp_path / "results/paper/paper.json").write_text("{")
        with pytest.raises(InputError, match=r"paper\.json"):
            paper_tables("1", tmp_path)


QWEN, LLAMA = "Qwen/Qwen2.5-7B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"


class Judged(RunRow):
    em_f1: float | None = 50.0


def a_run(model=QWEN, setting="finance", method="sft", judged=50.0, arm=None, scored_on=None, **train):
    fields = {"method": method, "setting": setting, "model": model} | train
    label = Train.model_validate(fields).label + (f" + {arm}" if arm else "")
    about = {"model": model, "setting": scored_on or setting, "method": label, "run": "r", "arm": arm}
    return Judged(**about, em_f1=judged, train=Train.model_validate(fields))


def shown(number, *rows):
    columns = ("Model", "Setting", "Method")
    cells = tuple((Cell(row.model), Cell(row.setting), Cell(row.method)) for row in rows)
    records = tuple({"table": number} for _ in rows)
    table = Table(number=number, title="t", columns=columns, rows=cells, records=records, notes=("Ours.",))
    return beside(table, rows, ROOT)


def test_beside_a_run_stands_what_the_paper_has_of_the_same():
    found = shown(
        1,
        a_run(),
        a_run(method="treft", region="prefix", **{"lambda": 1000.0}),
        a_run(method="interleave", retain_share=0.2),
    )
    cells = {(c["method"]): c for c in json.loads((ROOT / "results/paper/paper.json").read_text())["table1"]["cells"]
             if (c["model"], c["domain"]) == ("Qwen-2.5-7B", "finance")}  # fmt: skip
    assert found.columns[-1] == "Paper: ID, EM, EM-F1" and found.notes[0] == "Ours."
    sft, treft, mixed = (row[-1].text for row in found.rows)
    assert sft == "32.2, 39.7, 50.1"
    assert treft == "{id:.1f}, {em:.1f}, {em_f1:.1f} (lambda 10)".format(**cells["treft"])
    assert mixed == "{id:.1f}, {em:.1f}, {em_f1:.1f}".format(**cells["interleave"])
    assert found.records[0]["paper_em_f1"] == 50.1 and found.records[1]["paper_lambda"] == 10


@pytest.mark.parametrize(
    "row",
    [
        a_run(model="Qwen/Qwen2.5-7B"),
        a_run(model="x/Qwen2.5-7B-Instruct-1M"),
        a_run(model="smollm2-135m"),
        a_run(setting="gardening"),
        a_run(setting="health", scored_on="finance"),
        a_run(arm="prefix from the initial model"),
        a_run(method="treft", region="query"),
        a_run(method="interleave", retain_share=0.4),
        a_run(mix_aligned=0.25),
        a_run(full=True),
        a_run(judged=None),
    ],
    ids=str,
)
def test_and_nothing_beside_another(row):
    found = shown(1, row)
    assert found.rows[0][-1].text == "–" and found.records[0]["paper_em"] is None


def test_and_for_leakage_its_rates():
    found = shown(
        2, a_run(LLAMA, "abstention"), a_run(QWEN, "abstention"), a_run(LLAMA, "abstention", "treft", region="prefix")
    )
    assert [row[-1].text for row in found.rows] == ["100.0, 68.0", "–", "100.0, 20.0 (lambda 30)"]
