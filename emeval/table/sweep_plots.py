"""A sweep as a figure and as characters: a line over layers or tokens, or a mark with its interval a variant."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from emeval.errors import InputError
from emeval.score.dose import Beside
from emeval.score.matched import MatchedEstimate
from emeval.table.plots import DASHES, FORMATS, MARKERS, PALETTE, fixed_style, save_figure
from emeval.table.render import clean
from emeval.table.sweeps import Group

LEAST = 3
"""Variants that make a curve."""

Family = list[tuple[float, Beside]]


def families(group: Group) -> dict[str, Family]:
    """The variants that have a place on an axis, by what they share, in the axis's order."""
    found: dict[tuple[str, str], Family] = {}
    for row in group.rows:
        variant = group.variants[row.label]
        if variant.place is not None:
            found.setdefault((variant.axis, variant.family or ""), []).append((variant.place, row))
    lines = {key: sorted(points, key=lambda pair: pair[0]) for key, points in found.items() if len(points) >= LEAST}
    # Layers and tokens have no axis in common: a figure has one of them.
    return {name: points for (axis, name), points in lines.items() if axis == next(iter(lines))[0]}


def sweep_plot(group: Group, file: Path) -> None:
    """Draw a sweep into an SVG or PNG file; the same sweep gives the same bytes.

    Over layers or tokens: bold lines with bands, mean over seeds with 95 % over questions, flat lines for the models
    left alone. Else a mark with its interval for each variant. The two groups of questions differ in colour, marker and
    dashes at once.

    Raises:
        InputError: Another suffix, values that are not those of two groups of questions, or no matplotlib.
    """
    if file.suffix.lower() not in FORMATS:
        raise InputError("a figure is an .svg or a .png file", where=str(file), hint="Give --curve FILE.svg")
    _check(group)
    lines = families(group)
    with fixed_style():
        height = 4.2 if lines else 1.4 + 0.34 * len(group.rows)
        figure = import_module("matplotlib.figure").Figure(figsize=(7.5, height), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        labels = _draw_lines(axes, group, lines) if lines else _draw_marks(axes, group)
        axes.set_title(clean(group.title), fontsize=9, parse_math=False)
        axes.grid(color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
        legend = axes.legend([handle for handle, _ in labels], map(str, range(len(labels))), loc="best", fontsize=7)
        # Set afterwards: a label may hold what matplotlib would read as mathematics, or as a label to hide.
        for text, (_, label) in zip(legend.get_texts(), labels, strict=True):
            text.set_parse_math(False)
            text.set_text(clean(label))
        save_figure(figure, file)


def _draw_lines(axes: Any, group: Group, lines: dict[str, Family]) -> list[tuple[Any, str]]:
    labels = []
    for i, name in enumerate(group.sides):
        side = ("on", "off")[i]
        for j, (family, points) in enumerate(lines.items()):
            look = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[(2 * j + i) % len(MARKERS)]}
            value, low, high = _bounds([getattr(row, side) for _, row in points])
            at = [place for place, _ in points]
            axes.fill_between(at, low, high, color=look["color"], alpha=0.15, linewidth=0)
            (handle,) = axes.plot(at, value, **look, linestyle=DASHES[(2 * j + i) % len(DASHES)], linewidth=2, ms=4)
            labels.append((handle, f"{name}, {family}" if family else f"{name}, patched"))
        for row, width in zip(_alone(group), (1.6, 0.8), strict=False):
            flat = getattr(row, side).value
            if flat is not None:
                line = axes.axhline(100 * flat, color=PALETTE[i], linewidth=width, linestyle=("--", ":")[i])
                labels.append((line, f"{name}, {row.label}"))
    axes.set(xlabel=axis_of(group, lines), ylabel="percent")
    axes.set_ylim(bottom=0)
    return labels


def _draw_marks(axes: Any, group: Group) -> list[tuple[Any, str]]:
    labels = []
    for i, name in enumerate(group.sides):
        value, low, high = _bounds([getattr(row, ("on", "off")[i]) for row in group.rows])
        at = [n + (0.16 if i else -0.16) for n in range(len(group.rows))]
        ends = [[v - a for v, a in zip(value, low, strict=True)], [b - v for v, b in zip(value, high, strict=True)]]
        handle = axes.errorbar(value, at, xerr=ends, color=PALETTE[i], fmt=MARKERS[i], ms=5, capsize=2)
        labels.append((handle, name))
    axes.set_yticks(range(len(group.rows)), [clean(row.label) for row in group.rows], fontsize=7)
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    axes.invert_yaxis()
    axes.set(xlabel="percent")
    axes.set_xlim(left=0)
    return labels


def _bounds(found: Sequence[MatchedEstimate]) -> list[list[float]]:
    """Values, lower and upper ends in percent; NaN leaves a gap."""
    return [
        [float("nan") if v is None else 100 * v for v in (getattr(estimate, bound) for estimate in found)]
        for bound in ("value", "low", "high")
    ]


def _alone(group: Group) -> list[Beside]:
    """The models left alone: the first two variants without a place."""
    return [row for row in group.rows[:2] if group.variants[row.label].place is None]


def axis_of(group: Group, lines: dict[str, Family]) -> str:
    """What the axis counts."""
    return next(group.variants[row.label].axis for points in lines.values() for _, row in points)


def sweep_lines(group: Group, width: int = 72, height: int = 12) -> str:
    """The same as characters. Over layers or tokens `o` is the first group of questions, `x` the second, `?` both.

    Args:
        group: A sweep.
        width: Columns of the whole plot, at least 24.
        height: Lines of the field over layers or tokens, at least 5.

    Raises:
        InputError: The values are not those of two groups of questions.
        ValueError: Too small to draw in.
    """
    if width < 24 or height < 5:
        raise ValueError(f"a plot of {width} by {height} characters is too small: give 24 by 5 or more")
    _check(group)
    lines = families(group)
    top = max([e.value for row in group.rows for e in (row.on, row.off) if e.value is not None] + [0.01])
    return _field(group, lines, top, width, height) if lines else _bars(group, top, width)


def _field(group: Group, lines: dict[str, Family], top: float, width: int, height: int) -> str:
    points = [point for family in lines.values() for point in family]
    first, last = min(place for place, _ in points), max(place for place, _ in points)
    across = width - 6
    field = [[" "] * across for _ in range(height)]

    def line_of(value: float) -> list[str]:
        return field[round((1 - value / top) * (height - 1))]

    base = group.rows[0]
    for estimate, symbol in ((base.on, "-"), (base.off, "=")):
        if estimate.value is not None:
            line_of(estimate.value)[:] = [symbol] * across
    for place, row in points:
        column = round((place - first) / max(last - first, 1e-9) * (across - 1))
        for estimate, symbol in ((row.on, "o"), (row.off, "x")):
            if estimate.value is not None:
                line = line_of(estimate.value)
                line[column] = "?" if line[column] in "ox" and line[column] != symbol else symbol
    numbers = {0: f"{100 * top:3.0f}", height - 1: "  0"}
    shown = [f"{numbers.get(i, '   ')} |{''.join(line)}".rstrip() for i, line in enumerate(field)]
    axis = f"{first:g}".ljust(across - len(f"{last:g}")) + f"{last:g}"
    on, off = map(clean, group.sides)
    legend = f"  o {on} (- {clean(base.label)})   x {off} (= {clean(base.label)})   ? both"
    return "\n".join(
        ["%", *shown, "    +" + "-" * across, f"     {axis}", axis_of(group, lines).rjust(across + 5), legend]
    )


def _bars(group: Group, top: float, width: int) -> str:
    """Two bars a variant, the value behind each."""
    across, lines = width - 12, []
    for row in group.rows:
        lines.append(clean(row.label)[:width])
        for estimate, symbol in ((row.on, "o"), (row.off, "x")):
            if estimate.value is not None:
                bar = symbol * max(round(estimate.value / top * across), 1)
                lines.append(f"  {bar.ljust(across)} {100 * estimate.value:5.1f}")
    return "\n".join([*lines, f"  o {clean(group.sides[0])}   x {clean(group.sides[1])}   percent"])


def _check(group: Group) -> None:
    if not group.rows:
        hint = f"It draws {' and '.join(group.sides[:2])} where they are shares; the table shows the rest"
        raise InputError("this sweep's values cannot be drawn", where="--curve", hint=hint)
