"""Figures: the same curves give the same bytes, and no label can break them."""

import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from emeval.errors import InputError
from emeval.score.matched import Curve, Point
from emeval.table.plots import DASHES, MARKERS, PALETTE, curve_plot, terminal_plot

RISE = (0.0, 0.3, 0.6, 0.9)


def curve(on=RISE, off=RISE, label="sft", seed=0, first_step=0):
    points = []
    for k, (a, b) in enumerate(zip(on, off, strict=True)):
        points.append(Point(step=first_step + 4 * k, on={"a": a, "b": a}, off={"x": b, "y": b, "z": b}))
    return Curve(label=label, seed=seed, points=tuple(points))


@pytest.fixture
def two():
    lower = [share / 2 for share in RISE]
    return {"sft": [curve()], "treft (lambda 100)": [curve(off=lower, label="treft"), curve(off=lower, seed=1)]}


class TestFigure:
    @pytest.fixture(autouse=True)
    def _drawn(self):
        pytest.importorskip("matplotlib.figure")

    def test_svg_and_png_by_suffix(self, two, tmp_path):
        curve_plot(two, tmp_path / "new" / "a.svg", title="M, refusal", level=0.8)
        curve_plot(two, tmp_path / "a.PNG")
        assert ET.parse(tmp_path / "new" / "a.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
        assert (tmp_path / "a.PNG").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize("suffix", ["svg", "png"])
    def test_the_same_curves_give_the_same_bytes(self, two, tmp_path, suffix):
        files = [tmp_path / f"{i}.{suffix}" for i in range(2)]
        for file in files:
            curve_plot(two, file)
        assert files[0].read_bytes() == files[1].read_bytes()

    def test_the_users_own_style_does_not_matter(self, two, tmp_path):
        import matplotlib

        curve_plot(two, tmp_path / "a.svg")
        with matplotlib.rc_context({"lines.linewidth": 9, "svg.hashsalt": "x", "axes.facecolor": "red"}):
            curve_plot(two, tmp_path / "b.svg")
        assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()

    def test_the_file_names_no_day(self, two, tmp_path):
        curve_plot(two, tmp_path / "a.svg")
        assert "dc:date" not in (tmp_path / "a.svg").read_text()

    @pytest.mark.parametrize("label", ["$\\frac{", "_hidden", "<script>&", "\x1b[31mred\x00", "a -- b --> c"])
    def test_any_label_can_be_drawn(self, tmp_path, label):
        curve_plot({label: [curve(label=label)]}, tmp_path / "a.svg", title=label)
        ET.parse(tmp_path / "a.svg")

    def test_a_method_that_stops_early_is_drawn_as_far_as_it_went(self, tmp_path):
        curve_plot({"sft": [curve(), curve(on=(0.0, 0.1, 0.2, 0.3), seed=1)]}, tmp_path / "a.png")
        curve_plot({"sft": [curve(first_step=4)]}, tmp_path / "b.png")

    def test_only_svg_and_png(self, two, tmp_path):
        with pytest.raises(InputError, match=r"\.svg or a \.png"):
            curve_plot(two, tmp_path / "a.pdf")
        assert list(tmp_path.iterdir()) == []


def test_methods_differ_in_more_than_colour():
    assert len(set(PALETTE)) == len(set(MARKERS)) == len(set(DASHES)) == 7


def test_without_matplotlib_it_says_what_to_install(two, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    with pytest.raises(InputError, match=r"pip install 'emeval\[report\]'"):
        curve_plot(two, tmp_path / "a.svg")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("nothing", [{}, {"sft": []}])
def test_no_curves_no_figure(nothing, tmp_path):
    with pytest.raises(InputError, match="no curves"):
        curve_plot(nothing, tmp_path / "a.svg")
    with pytest.raises(InputError, match="no curves"):
        terminal_plot(nothing)


def test_importing_it_loads_neither_matplotlib_nor_numpy():
    code = "import sys, emeval.table.plots; sys.exit(bool({'matplotlib', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestTerminal:
    def test_on_topic_runs_right_and_off_topic_up(self):
        text = terminal_plot({"sft": [curve(on=(0.0, 0.5, 1.0), off=(0.0, 0.5, 0.0), first_step=4)]}, 27, 5)
        assert text.splitlines() == [
            "off-topic %",
            "100 |                  ...",
            "    |             .....",
            " 50 |        ..o..",
            "    |   .....",
            "  0 |o..                 o",
            "    +---------------------",
            "     0        50       100",
            "                on-topic %",
            "  o  sft",
            "  .  off-topic = on-topic",
        ]

    def test_a_symbol_for_each_method_and_for_the_start(self, two):
        text = terminal_plot(two)
        assert "  o  sft\n  x  treft (lambda 100)\n  0  untouched model\n" in text
        field = text.split("    +--")[0]
        assert field.count("o") == 3 + "off-topic".count("o") and field.count("x") == 3

    def test_where_methods_meet_it_says_several(self):
        text = terminal_plot({"a": [curve(first_step=4)], "b": [curve(first_step=4)]})
        assert "  ?  several methods" in text and "untouched" not in text

    def test_it_keeps_to_its_size(self, two):
        lines = terminal_plot(two, width=40, height=9).splitlines()
        assert max(map(len, lines)) <= 40
        assert len(lines) == 1 + 9 + 3 + 4  # heading, field, axis with its numbers and name, legend

    def test_labels_are_harmless(self):
        assert "\x1b" not in terminal_plot({"\x1b[2Jsft": [curve()]})

    def test_too_small_is_refused(self, two):
        with pytest.raises(ValueError, match="too small"):
            terminal_plot(two, width=20)
