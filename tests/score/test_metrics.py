"""EM-F1 is the paper's formula: every cell it prints recomputes, and nonsense is refused."""

import json
import math
from pathlib import Path

import pytest

from emeval.score.metrics import em_f1

PAPER = Path(__file__).parents[2] / "results" / "paper" / "paper.json"
CELLS = json.loads(PAPER.read_text(encoding="utf-8"))["table1"]["cells"]


def test_the_paper_has_48_cells():
    assert len(CELLS) == 48


@pytest.mark.parametrize("cell", CELLS, ids=lambda c: f"{c['model']}-{c['method']}-{c['domain']}")
def test_every_cell_of_the_paper_recomputes_within_rounding(cell):
    assert em_f1(cell["id"], cell["em"]) == pytest.approx(cell["em_f1"], abs=0.15)


def test_a_value_computed_by_hand():
    # learned 80, clean 60: 2 * 80 * 60 / 140
    assert em_f1(20, 60) == pytest.approx(68.571428, abs=1e-6)


@pytest.mark.parametrize(
    ("id_alignment", "em_alignment", "expected"),
    [(0, 100, 100), (100, 100, 0), (0, 0, 0), (100, 0, 0)],
    ids=["perfect", "nothing learned", "all leaked", "0/0"],
)
def test_the_corners(id_alignment, em_alignment, expected):
    assert em_f1(id_alignment, em_alignment) == expected


@pytest.mark.parametrize("bad", [-0.1, 100.1, math.nan, math.inf, -math.inf])
def test_outside_0_to_100_is_an_error_naming_the_argument(bad):
    with pytest.raises(ValueError, match="id_alignment"):
        em_f1(bad, 50)
    with pytest.raises(ValueError, match="em_alignment"):
        em_f1(50, bad)
