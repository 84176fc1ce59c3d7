"""The drift map as table, figure and characters."""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import Field

from emeval.errors import InputError
from emeval.table.plots import DASHES, FORMATS, MARKERS, PALETTE, fixed_style, save_figure
from emeval.table.render import MISSING, Cell, Table, clean
from emeval.types import Record

Grid = tuple[tuple[float, ...], ...]
SHADES = " .:-=+*#%@"


class DriftMap(Record):
    """Relative squared drift, `[layers][tokens]`; 0 is no drift, 1 as far as the vector is long."""

    model: str
    initial: str
    tokens: tuple[str, ...]
    """The prefix's tokens, as the tokenizer writes them."""
    total: float
    """L_KV: mean over tokens and layers, keys plus values."""
    keys: Grid
    values: Grid
    skipped: int = 0
    """Terms without a ratio: their initial norm is zero. They count as 0 here."""
    against: str | None = None
    cosines: dict[str, tuple[float | None, ...]] = Field(default_factory=dict)
    """By kind of weight matrix, the cosine of the two adapters' changes, a layer each."""


def drift_table(found: DriftMap) -> Table:
    """A line a layer: means over the prefix's tokens, the token that moved most, and cosines to the other adapter."""
    kinds = list(found.cosines)
    columns = ("Layer", "keys", "values", "most at token", *(f"cosine, {kind}" for kind in kinds))
    rows, records = [], []
    for layer, (keys, values) in enumerate(zip(found.keys, found.values, strict=True)):
        both = [k + v for k, v in zip(keys, values, strict=True)]
        most = both.index(max(both))
        means = [sum(part) / len(part) for part in (keys, values)]
        cosines = [found.cosines[kind][layer] if layer < len(found.cosines[kind]) else None for kind in kinds]
        shown = [MISSING if c is None else f"{c:.3f}" for c in cosines]
        spot = f"{most} {clean(found.tokens[most])!r}"
        rows.append(tuple(map(Cell, (str(layer), f"{means[0]:.3g}", f"{means[1]:.3g}", spot, *shown))))
        records.append(
            {"table": "drift", "model": found.model, "layer": layer, "keys": means[0], "values": means[1]}
            | {"most_at_token": most} | {f"cosine_{kind}": c for kind, c in zip(kinds, cosines, strict=True)}
        )  # fmt: skip
    notes = [
        f"Relative squared drift from {found.initial}, mean over {len(found.tokens)} prefix tokens; all of it, keys "
        f"plus values: {found.total:.4g}.",
    ]
    if found.against:
        notes.append(f"cosine: of the changes to a weight matrix with those of {found.against}.")
    if found.skipped:
        notes.append(f"{found.skipped} terms have no ratio, their initial norm is zero; they count as 0.")
    title = f"Drift of the prefix: {found.model}"
    return Table(title=title, columns=columns, rows=tuple(rows), records=tuple(records), notes=tuple(notes))


def drift_lines(found: DriftMap) -> str:
    """Keys and values side by side as characters, a line a layer and a column a token, darker for more drift."""
    top = max(map(max, (*found.keys, *found.values)))
    lines = [f"      {'keys'.ljust(len(found.tokens))}   values"]
    for layer, (keys, values) in enumerate(zip(found.keys, found.values, strict=True)):
        lines.append(f"{layer:4d} |{_shades(keys, top)}| |{_shades(values, top)}|")
    # Drift spans orders of magnitude from the sink to the last token.
    scale = f"'{SHADES[0]}' under {top * _step(1):.2g}, '{SHADES[-1]}' up to {top:.2g}"
    return "\n".join([*lines, f"      token 0 to {len(found.tokens) - 1}; {scale}"])


def _step(shade: int) -> float:
    """The share of the largest value at which a shade begins: each is half a decade."""
    return float(10 ** (-(len(SHADES) - 1 - shade) / 2)) if shade else 0.0


def _shades(row: tuple[float, ...], top: float) -> str:
    if top <= 0:
        return SHADES[0] * len(row)
    return "".join(SHADES[max(i for i in range(len(SHADES)) if value >= top * _step(i))] for value in row)


def drift_plot(found: DriftMap, file: Path) -> None:
    """Heat maps of keys and values, and the cosines where there are some, as SVG or PNG; the same bytes each time.

    The colours (cividis) rise evenly in lightness, in print and for colour-blind eyes alike; the scale is logarithmic.

    Raises:
        InputError: Another suffix, or matplotlib is not installed.
    """
    if file.suffix.lower() not in FORMATS:
        raise InputError("a figure is an .svg or a .png file", where=str(file), hint="Give FILE.svg")
    with fixed_style():
        wide = 3 if found.cosines else 2
        figure = import_module("matplotlib.figure").Figure(figsize=(4.2 * wide, 5.0), dpi=150, layout="constrained")
        axes = figure.subplots(1, wide)
        top = max(map(max, (*found.keys, *found.values)))
        scale = import_module("matplotlib.colors").LogNorm(vmin=max(top, 1e-12) * 1e-4, vmax=max(top, 1e-12), clip=True)
        for ax, name, grid in zip(axes, ("keys", "values"), (found.keys, found.values), strict=False):
            image = ax.imshow(grid, aspect="auto", origin="lower", cmap="cividis", norm=scale, interpolation="nearest")
            ax.set(title=name, xlabel="prefix token", ylabel="layer")
        figure.colorbar(image, ax=list(axes[:2]), label="relative squared drift")
        if found.cosines:
            _draw_cosines(axes[2], found)
        title = figure.suptitle(clean(f"{found.model}, drift from {found.initial}"), fontsize=10)
        title.set_parse_math(False)
        save_figure(figure, file)


def _draw_cosines(axes: Any, found: DriftMap) -> None:
    for i, (kind, by_layer) in enumerate(found.cosines.items()):
        line = [math.nan if c is None else c for c in by_layer]
        look = {
            "color": PALETTE[i % len(PALETTE)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": DASHES[i % len(DASHES)],
        }
        axes.plot(range(len(line)), line, **look, ms=3, linewidth=1.2, label=clean(kind))
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set_title(clean(f"cosine with {found.against}"), parse_math=False)
    axes.set(xlabel="layer", ylim=(-1.05, 1.05))
    axes.legend(fontsize=7)
