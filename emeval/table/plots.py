"""Off-topic against on-topic along training, as a figure and as characters.

A method's mean line is read as the dose-matched table reads it: its height at an on-topic level is the figure in the
table for that level, its band the table's brackets. The thin lines are the runs, with a marker at each checkpoint.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from emeval.errors import InputError
from emeval.score.matched import SIDES, Curve, MatchedRow, matched
from emeval.store import reported
from emeval.table.render import clean

FORMATS = (".svg", ".png")
LINE_LEVELS = tuple(level / 50 for level in range(51))
"""On-topic levels at which a mean line is drawn."""

LINE_DRAWS = 500
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that the colour-blind can tell apart: Okabe and Ito (2008), their faint yellow left out."""

MARKERS = "os^Dv*P"
DASHES = ("-", *((0, on_off) for on_off in ((6, 2), (1.2, 1.4), (6, 2, 1.2, 2), (3, 1), (6, 2, 1, 2, 1, 2), (9, 4))))
SYMBOLS = "ox+*#@%&"
SEVERAL, START, DIAGONAL = "?", "0", "."

Methods = Mapping[str, Sequence[Curve]]
Sides = tuple[str, str]
TOPICS = SIDES["generation"]


def curve_plot(
    curves: Methods, file: Path, *, title: str = "", level: float | None = None, sides: Sides = TOPICS
) -> None:
    """Draw the curves into an SVG or PNG file; the same curves give the same bytes.

    Thin lines are single runs, bold ones a method's mean over its seeds where all of them have been, with a 95% band
    from the bootstrap over questions. Axes are percent. Methods differ in colour, line and marker at once, so the
    figure survives a black-and-white printer.

    Args:
        curves: By method, a curve a seed, as `read_curves` groups them.
        file: Where to write; the suffix chooses the format.
        title: Shown above.
        level: On-topic rate to mark, 0 to 1: where the methods are compared.
        sides: What the questions are called: those to be learned, and the others.

    Raises:
        InputError: Another suffix, no curves, or matplotlib is not installed.
    """
    if file.suffix.lower() not in FORMATS:
        raise InputError("a figure is an .svg or a .png file", where=str(file), hint="Give --curve FILE.svg")
    _check(curves)
    with fixed_style():
        figure = import_module("matplotlib.figure").Figure(figsize=(6.0, 6.0), dpi=150, layout="constrained")
        _draw(figure.add_subplot(), curves, title, level, sides)
        save_figure(figure, file)


def save_figure(figure: Any, file: Path) -> None:
    """A matplotlib figure as .svg or .png, the same bytes each time; within `fixed_style`."""
    drawn = io.BytesIO()
    svg = file.suffix.lower() == ".svg"
    metadata = {"Date": None, "Creator": None} if svg else {"Software": None}
    figure.savefig(drawn, format=file.suffix[1:].lower(), metadata=metadata)
    with reported(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(drawn.getvalue())


def terminal_plot(curves: Methods, width: int = 64, height: int = 18, sides: Sides = TOPICS) -> str:
    """The checkpoints of the same curves as characters, a symbol a method, with axes in percent and a legend.

    Args:
        curves: By method, a curve a seed.
        width: Columns of the whole plot, at least 24.
        height: Lines of the field, at least 5; axis and legend come below.

    Raises:
        InputError: No curves.
        ValueError: Too small to draw in.
    """
    _check(curves)
    if width < 24 or height < 5:
        raise ValueError(f"a plot of {width} by {height} characters is too small: give 24 by 5 or more")
    field = _Field(width - 6, height)
    for column in range(field.across):
        field.put(column / (field.across - 1), column / (field.across - 1), DIAGONAL)
    symbols = {label: SYMBOLS[i % len(SYMBOLS)] for i, label in enumerate(curves)}
    for label, runs in curves.items():
        for curve in runs:
            for point, on, off in zip(curve.points, curve.on_means, curve.off_means, strict=True):
                field.put(on, off, symbols[label] if point.step else START)
    learned, elsewhere = sides
    meanings = {START: "untouched model", SEVERAL: "several methods", DIAGONAL: f"{elsewhere} = {learned}"}
    numbers = {0: "100", (height - 1) // 2: " 50", height - 1: "  0"}
    lines = [f"{numbers.get(i, '   ')} |{''.join(line)}".rstrip() for i, line in enumerate(field.lines)]
    axis = "0" + "50".center(field.across - 4) + "100"
    legend = [f"  {symbol}  {clean(label)[: width - 5]}" for label, symbol in symbols.items()]
    for symbol, text in meanings.items():
        legend += [f"  {symbol}  {text}"] if any(symbol in line for line in field.lines) else []
    below = ["    +" + "-" * field.across, f"     {axis}", f"{learned} %".rjust(field.across + 5)]
    return "\n".join([f"{elsewhere} %", *lines, *below, *legend])


class _Field:
    """The characters of a plot, top line first; both axes run from 0 to 1."""

    def __init__(self, across: int, height: int) -> None:
        self.across = across
        self.lines = [[" "] * across for _ in range(height)]

    def put(self, on: float, off: float, symbol: str) -> None:
        line, column = self.lines[round((1 - off) * (len(self.lines) - 1))], round(on * (self.across - 1))
        free = line[column] in (" ", DIAGONAL, symbol)
        if START in (symbol, line[column]):  # where all began stays visible in a crowd
            symbol = START
        line[column] = symbol if free or symbol == START else SEVERAL


def _check(curves: Methods) -> None:
    if not curves or not all(curves.values()):
        hint = "Name runs scored with emeval score --model FOLDER --checkpoints"
        raise InputError("there are no curves to draw", hint=hint)


@contextmanager
def fixed_style() -> Iterator[None]:
    """matplotlib's own defaults, whatever the user's settings, and the same ids in every SVG.

    Raises:
        InputError: It is not installed, or not whole.
    """
    try:
        # By name, so that neither importing this module nor type-checking it needs matplotlib.
        style = import_module("matplotlib.style")
        import_module("matplotlib.figure")
    except ImportError as error:
        hint = "Install it: pip install 'emeval[report]'"
        raise InputError(f"drawing a figure needs matplotlib ({error})", where="--curve", hint=hint) from error
    with style.context(["default", {"svg.hashsalt": "emeval", "font.size": 10}]):
        yield


class _Look(NamedTuple):
    """What tells a method apart, in colour and without."""

    color: str
    marker: str
    dashes: Any


def _draw(axes: Any, curves: Methods, title: str, level: float | None, sides: Sides) -> None:
    axes.set(xlim=(-3, 103), ylim=(-3, 103), aspect="equal")
    axes.set_xlabel(f"{sides[0]}, % (right: learned)")
    axes.set_ylabel(f"{sides[1]}, % (down: clean)")
    axes.set_title(clean(title), fontsize=10, parse_math=False)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.plot([0, 100], [0, 100], color="0.6", linewidth=0.9, linestyle=(0, (1, 3)), zorder=1)
    lines = _mean_lines(curves)
    handles, labels = [], [*curves]
    for i, (label, runs) in enumerate(curves.items()):
        look = _Look(PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)])
        handles.append(_draw_method(axes, runs, lines[label], look))
    if level is not None:
        handles.append(axes.axvline(100 * level, color="0.35", linewidth=1, linestyle="--", zorder=1))
        labels.append(f"compared at {100 * level:g}")
    start = _untouched(curves)
    if start:
        handles += axes.plot(*start, "*", markersize=13, color="white", markeredgecolor="black", zorder=5)
        labels.append("untouched model")
    legend = axes.legend(handles, map(str, range(len(handles))), loc="upper left", handlelength=4, framealpha=0.9)
    # Set afterwards: a label may hold what matplotlib would read as mathematics, or as a label to hide.
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(clean(label))


def _draw_method(axes: Any, runs: Sequence[Curve], line: Sequence[MatchedRow], look: _Look) -> Any:
    """Runs thin, mean bold, band pale. Returns the legend's handle."""
    color, marker, dashes = look
    for curve in runs:
        on, off = ([100 * value for value in values] for values in (curve.on_means, curve.off_means))
        axes.plot(on, off, color=color, linewidth=0.7, alpha=0.75, marker=marker, ms=4.5, markeredgewidth=0, zorder=3)
    at = [100 * row.level for row in line]
    # NaN leaves a gap where a level is not reached.
    value, low, high = (
        [float("nan") if share is None else 100 * share for share in shares]
        for shares in zip(*((row.off.value, row.off.low, row.off.high) for row in line), strict=True)
    )
    axes.fill_between(at, low, high, color=color, alpha=0.12, linewidth=0, zorder=2)
    for edge in (low, high):
        axes.plot(at, edge, color=color, linewidth=0.6, linestyle=dashes, alpha=0.7, zorder=2)
    axes.plot(at, value, color=color, linewidth=2.4, linestyle=dashes, zorder=4)
    (handle,) = axes.plot([], [], color=color, linewidth=2.4, linestyle=dashes, marker=marker)
    return handle


def _mean_lines(curves: Methods) -> dict[str, list[MatchedRow]]:
    lines: dict[str, list[MatchedRow]] = {label: [] for label in curves}
    for row in matched(curves, LINE_LEVELS, LINE_DRAWS):
        lines[row.label].append(row)
    return lines


def _untouched(curves: Methods) -> tuple[float, float] | None:
    """On- and off-topic percent of the model before training, where a run was scored at step 0."""
    for curve in (curve for runs in curves.values() for curve in runs):
        if curve.points[0].step == 0:
            return 100 * curve.on_means[0], 100 * curve.off_means[0]
    return None
