"""A sweep over layers or tokens as a figure and as characters: what each variant leaves of the behaviour."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from emeval.errors import InputError
from emeval.score.dose import Beside
from emeval.table.plots import DASHES, FORMATS, MARKERS, PALETTE, fixed_style, save_figure
from emeval.table.render import clean
from emeval.table.sweeps import Group

LEAST = 3
"""Variants that make a curve."""


def placed(group: Group) -> list[tuple[float, Beside]]:
    """The variants that have a place on the axis, in its order."""
    found = [(place, row) for row in group.rows if (place := group.places[row.label]) is not None]
    return sorted(found, key=lambda pair: pair[0])


def axis_of(group: Group) -> str:
    """What the axis counts: layers or tokens."""
    labels = [row.label for _, row in placed(group)]
    return (
        "prefix token" if labels and all(", token" in label and ", layer" not in label for label in labels) else "layer"
    )


def layer_plot(group: Group, file: Path) -> None:
    """Draw the variants over layers (or tokens) into an SVG or PNG file; the same sweep gives the same bytes.

    Bold lines with bands are the variants, mean over seeds with 95 % over questions; flat lines the unpatched model
    (dashed) and the other one (dotted). The two groups of questions differ in colour, marker and line at once.

    Raises:
        InputError: Another suffix, fewer than three placed variants, or matplotlib is not installed.
    """
    if file.suffix.lower() not in FORMATS:
        raise InputError("a figure is an .svg or a .png file", where=str(file), hint="Give --curve FILE.svg")
    points = _checked(group)
    with fixed_style():
        figure = import_module("matplotlib.figure").Figure(figsize=(7.0, 4.2), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        for i, side in enumerate(("on", "off")):
            _draw_side(axes, group, points, i, side)
        axes.set_xlabel(axis_of(group))
        axes.set_ylabel("percent")
        axes.set_title(clean(group.first.title), fontsize=9, parse_math=False)
        axes.grid(color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_ylim(bottom=0)
        axes.legend(loc="best", framealpha=0.9, fontsize=8)
        save_figure(figure, file)


def _draw_side(axes: Any, group: Group, points: list[tuple[float, Beside]], i: int, side: str) -> None:
    color, name = PALETTE[i], clean(group.first.sides[i])
    at = [place for place, _ in points]
    found = [getattr(row, side) for _, row in points]
    value, low, high = (
        [float("nan") if v is None else 100 * v for v in (getattr(estimate, bound) for estimate in found)]
        for bound in ("value", "low", "high")
    )
    axes.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(
        at, value, color=color, linewidth=2, linestyle=DASHES[0], marker=MARKERS[i], ms=4, label=f"{name}, patched"
    )
    for row, line in zip(group.rows[:2], ("--", ":"), strict=False):
        flat = getattr(row, side).value
        if flat is not None and group.places[row.label] is None:
            label = f"{name}, {clean(row.label)}"
            axes.axhline(100 * flat, color=color, linewidth=1.2, linestyle=line, label=label)


def layer_lines(group: Group, width: int = 64, height: int = 12) -> str:
    """The same as characters: `o` the first group of questions, `x` the second, `?` both; `-` and `=` unpatched.

    Args:
        group: A sweep.
        width: Columns of the whole plot, at least 24.
        height: Lines of the field, at least 5.

    Raises:
        InputError: Fewer than three placed variants.
        ValueError: Too small to draw in.
    """
    if width < 24 or height < 5:
        raise ValueError(f"a plot of {width} by {height} characters is too small: give 24 by 5 or more")
    points = _checked(group)
    first, last = points[0][0], points[-1][0]
    across = width - 6
    shown = [e.value for _, row in points for e in (row.on, row.off) if e.value is not None]
    base = group.rows[0]
    flat = [e.value for e in (base.on, base.off) if e.value is not None and group.places[base.label] is None]
    top = max([*shown, *flat, 0.01])
    field = [[" "] * across for _ in range(height)]

    def line_of(value: float) -> int:
        return round((1 - value / top) * (height - 1))

    for value, symbol in zip(flat, "-=", strict=False):
        field[line_of(value)] = [symbol] * across
    for place, row in points:
        column = round((place - first) / max(last - first, 1e-9) * (across - 1))
        for estimate, symbol in ((row.on, "o"), (row.off, "x")):
            if estimate.value is not None:
                line = field[line_of(estimate.value)]
                line[column] = "?" if line[column] in "ox" and line[column] != symbol else symbol
    numbers = {0: f"{100 * top:3.0f}", height - 1: "  0"}
    lines = [f"{numbers.get(i, '   ')} |{''.join(line)}".rstrip() for i, line in enumerate(field)]
    axis = f"{first:g}".ljust(across - len(f"{last:g}")) + f"{last:g}"
    on, off = map(clean, group.first.sides)
    legend = f"  o {on} (- {clean(base.label)})   x {off} (= {clean(base.label)})   ? both"
    return "\n".join(["%", *lines, "    +" + "-" * across, f"     {axis}", axis_of(group).rjust(across + 5), legend])


def _checked(group: Group) -> list[tuple[float, Beside]]:
    points = placed(group)
    if len(points) < LEAST:
        hint = "Sweep with --layers each, or --tokens each"
        raise InputError("this sweep has too few variants over layers or tokens to draw", where="--curve", hint=hint)
    return points
