"""Sweeps as a table: every variant beside the model left alone, and beside training itself.

Reads `sweep.json`, which `emeval patch` and `emeval perturb` write. Sweeps of the same model, setting and intervention
whose models differ in their seed only are one: the mean over seeds, with an interval over questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, Field

from emeval.errors import InputError
from emeval.score.dose import Beside, beside
from emeval.score.matched import Curve, Point
from emeval.table.curves import CHECKPOINTS, Mode, read_curves
from emeval.table.render import MISSING, Cell, Table, Value, _percent, estimate_text
from emeval.table.rows import UNKNOWN, Train, parse
from emeval.types import Estimate, Split

FILE = "sweep.json"
MEASURED: dict[Mode, str] = {
    "generation": "Rates: share of generated replies that show the behaviour.",
    "probability": "Values: teacher-forced probability of the target reply, percent; no replies were generated.",
    "contrast": "Values: how far the misaligned reply is preferred, percent; no replies were generated.",
}
TRAINING = (
    "minus training: the second value minus what the run had where its training first came to the same first value. "
    "Around 0 a patch does what undoing training would; below 0 it takes away more elsewhere. 'not reached': training "
    "does not cross that value."
)


class _Variant(BaseModel):
    label: str
    place: float | None = None
    values: dict[str, dict[str, float]]
    estimates: dict[str, Estimate]


class _Model(BaseModel):
    id: str
    train: Train | None = None


class Sweep(BaseModel):
    """`sweep.json`, of which other keys are ignored."""

    setting: str
    model: _Model
    what: Literal["kv", "residual", "perturb"]
    region: str = ""
    into: Literal["tuned", "initial"] = "tuned"
    by: Mode
    split: Split
    sides: tuple[str, ...]
    variants: tuple[_Variant, ...] = Field(min_length=1)

    @property
    def name(self) -> str:
        """Model, setting and method: what its seeds share."""
        train = self.model.train
        base = (train.model if train else None) or self.model.id
        return f"{base}, {self.setting}, {train.label if train else UNKNOWN}"

    @property
    def title(self) -> str:
        """What is patched, and what its seeds share."""
        if self.what == "perturb":
            return f"Perturbed prompts: {self.name}"
        what = f"keys and values of {self.region.replace(',', ', ')}"
        if self.what == "residual":
            what = "the prefix's residual stream at the input of one block"
        return f"Patching {what}{' in the initial model' if self.into == 'initial' else ''}: {self.name}"

    @property
    def two_sided(self) -> bool:
        """Whether it has two groups of questions with values from 0 to 1, so that it can be read beside training."""
        values = [v for variant in self.variants for side in variant.values.values() for v in side.values()]
        return len(self.sides) == 2 and all(0 <= v <= 1 for v in values)


class Group(NamedTuple):
    """The seeds of one sweep."""

    name: str
    first: Sweep
    rows: list[Beside]
    """Mean over seeds; empty where the values are no shares of two groups."""
    places: dict[str, float | None]
    seeds: int
    sweeps: list[Sweep]


def read_sweeps(paths: Sequence[Path]) -> list[Group]:
    """The sweeps in these folders, seeds together; folders with `checkpoints.json` are training to read them beside.

    Raises:
        InputError: A folder holds neither, or a malformed file; or none holds a sweep.
    """
    sweeps = [parse(Sweep, path / FILE) for path in paths if (path / FILE).is_file()]
    trained = [path for path in paths if (path / CHECKPOINTS).is_file()]
    for path in paths:
        if not (path / FILE).is_file() and path not in trained:
            hint = "Name folders that emeval patch wrote, and runs scored with --checkpoints to read them beside"
            raise InputError(f"holds neither {FILE} nor {CHECKPOINTS}", where=str(path), hint=hint)
    if not sweeps:
        raise InputError("none of these folders holds a sweep", where="--sweep", hint="Run emeval patch first")
    found: dict[tuple[object, ...], list[Sweep]] = {}
    for sweep in sweeps:
        found.setdefault((sweep.title, sweep.by, sweep.split, sweep.sides), []).append(sweep)
    return [_group(members, trained) for members in found.values()]


def _group(members: list[Sweep], trained: Sequence[Path]) -> Group:
    first = members[0]
    places = {variant.label: variant.place for sweep in members for variant in sweep.variants}
    # In the order of the command, baselines first; sweeps of one group may differ in what they tried.
    seeds = {(sweep.model.train.seed if sweep.model.train else None) for sweep in members}
    rows: list[Beside] = []
    if first.two_sided:
        curves: dict[str, list[Curve]] = {label: [] for label in places}
        for sweep in members:
            for variant in sweep.variants:
                curves[variant.label].append(_curve(sweep, variant))
        rows = beside(curves, first.variants[0].label, _training(first, trained))
    return Group(first.name, first, rows, places, len(seeds), members)


def _curve(sweep: Sweep, variant: _Variant) -> Curve:
    on, off = (variant.values[side] for side in sweep.sides)
    seed = sweep.model.train.seed if sweep.model.train else None
    return Curve(label=variant.label, seed=seed, points=(Point(step=1, on=on, off=off),))


def _training(sweep: Sweep, trained: Sequence[Path]) -> list[Curve]:
    """The curves of the same model, setting and method; none where no such run was named."""
    if not trained:
        return []
    for group in read_curves(trained, sweep.split, sweep.by):
        for method, curves in group.methods.items():
            if sweep.name == f"{group.model}, {group.setting}, {method}":
                return list(curves)
    return []


def sweep_table(groups: Sequence[Group]) -> list[Table]:
    """A table a group: every variant with its error, in percent."""
    return [_table(group) for group in groups]


def _table(group: Group) -> Table:
    first = group.first
    title = first.title + (f", {group.seeds} seeds" if group.seeds > 1 else "")
    notes = [MEASURED[first.by]]
    if not group.rows:
        return _plain(group, title, notes)
    on, off = first.sides
    training = any(row.minus_training for row in group.rows)
    base = group.rows[0].label
    columns = ("Variant", on, off, f"{on} minus {base}", f"{off} minus {base}", "minus training")
    shown = len(columns) if training else -1
    if training:
        notes.append(TRAINING)
    n = (group.rows[0].on.n, group.rows[0].off.n)
    notes.append(f"{n[0]} {on} and {n[1]} {off} questions ({first.split}). Brackets: 95 %, bootstrap over questions.")
    rows = []
    for row in group.rows:
        gaps = [_gap(row.on_minus), _gap(row.off_minus), _gap(row.minus_training, "not reached")]
        rows.append(tuple(map(Cell, (row.label, _percent(row.on), _percent(row.off), *gaps)))[:shown])
    return Table(
        title=title, columns=columns[:shown], rows=tuple(rows), notes=tuple(notes),
        records=tuple(_record(group, row) for row in group.rows),
    )  # fmt: skip


def _gap(found: Estimate | None, nothing: str = MISSING) -> str:
    if found is None:
        return MISSING
    return nothing if found.value is None else _percent(found)


def _record(group: Group, row: Beside) -> dict[str, Value]:
    named = {
        "on": row.on, "off": row.off, "on_minus": row.on_minus, "off_minus": row.off_minus,
        "minus_training": row.minus_training,
    }  # fmt: skip
    record: dict[str, Value] = {"table": "sweep", "group": group.name, "variant": row.label}
    record |= {"place": group.places[row.label], "seeds": group.seeds, "by": group.first.by, "split": group.first.split}
    for name, found in named.items():
        record |= {name: found.value if found else None}
        record |= {f"{name}_low": found.low if found else None, f"{name}_high": found.high if found else None}
    return record


def _plain(group: Group, title: str, notes: list[str]) -> Table:
    """Of values that are no shares: each sweep's own estimates."""
    shown = [(sweep, variant) for sweep in group.sweeps for variant in sweep.variants]
    rows = [
        tuple(map(Cell, [v.label, *(estimate_text(v.estimates.get(side)) for side in group.first.sides)]))
        for _, v in shown
    ]
    records = [
        {"table": "sweep", "group": group.name, "variant": v.label}
        | {side: v.estimates[side].value for side in group.first.sides if side in v.estimates}
        for _, v in shown
    ]
    return Table(
        title=title, columns=("Variant", *group.first.sides), rows=tuple(rows), notes=tuple(notes),
        records=tuple(records),
    )  # fmt: skip
