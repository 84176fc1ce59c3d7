"""Sweeps as a table: every variant beside the model left alone, and beside training itself.

Reads `sweep.json`, which `emeval patch` and `emeval perturb` write. Sweeps of one model, setting and way of training,
measured alike on the same questions, are one table: their variants together, their seeds as a mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, Field

from emeval.errors import InputError
from emeval.score.dose import Beside, beside
from emeval.score.figures import measure
from emeval.score.matched import SIDES, Curve, MatchedEstimate, Point
from emeval.score.stats import paired_difference
from emeval.table.curves import CHECKPOINTS, Mode, read_curves, reading, same_training
from emeval.table.render import MISSING, Cell, Table, Value, estimate_text
from emeval.table.rows import UNKNOWN, Train, parse
from emeval.types import Estimate, Split

FILE = "sweep.json"
MEASURED: dict[Mode, str] = {
    "generation": "Rates: share of generated replies that show the behaviour, percent.",
    "probability": "Values: teacher-forced probability of the target reply, percent; no replies were generated.",
    "contrast": "Values: how far the misaligned reply is preferred, percent; no replies were generated.",
}
TRAINING = (
    "minus training: the second value minus what the run had where its training first came to the same first value. "
    "Around 0 a patch does what undoing training would; below 0 it takes away more elsewhere. 'not reached': training "
    "does not cross that value; open: nor do more than 5 % of the draws, which are not in the interval."
)
_ROUNDING = 1e-4
"""Two measurements of one variant, batched otherwise, differ by less."""
TRIALS = "average, lowest, highest: of a question's trials, then the mean over questions."


class _Variant(BaseModel):
    label: str
    place: float | None = None
    axis: str = "layer"
    """What the place counts."""
    family: str | None = None
    """What it shares with those it makes a line with in a plot."""
    trials: Literal["average", "lowest", "highest"] | None = None
    values: dict[str, dict[str, float]]
    measures: dict[str, dict[str, Estimate]] = Field(default_factory=dict)


class _Model(BaseModel):
    id: str
    train: Train | None = None


class Sweep(BaseModel):
    """`sweep.json`, of which other keys are ignored."""

    setting: str
    model: _Model
    training: str | None = None
    """Hash of all that the model was trained with but its seed."""
    what: Literal["kv", "residual", "perturb"]
    into: Literal["tuned", "initial"] = "tuned"
    by: Mode
    split: Split
    sides: tuple[str, ...]
    baseline: str | None = None
    """The variant that others are read beside; files of before it was told have it first."""
    asked: str | None = None
    """Hash of the questions."""
    variants: tuple[_Variant, ...] = Field(min_length=1)

    @property
    def first(self) -> str:
        """The baseline's label."""
        return self.baseline or self.variants[0].label

    @property
    def name(self) -> str:
        """Model, setting and method: what its seeds share."""
        train = self.model.train
        base = (train.model if train else None) or self.model.id
        return f"{base}, {self.setting}, {train.label if train else UNKNOWN}"

    @property
    def seed(self) -> int | None:
        """The model's training seed."""
        return self.model.train.seed if self.model.train else None

    @property
    def title(self) -> str:
        """What was done to which model."""
        if self.what == "perturb":
            return f"Perturbed prompts: {self.name}"
        return f"Patched{', the initial model answers' if self.into == 'initial' else ''}: {self.name}"

    @property
    def questions(self) -> object:
        """What was asked."""
        return self.asked or tuple(tuple(sorted(self.variants[0].values.get(side, {}))) for side in self.sides)

    @property
    def two_sided(self) -> bool:
        """Whether it has the two groups of values from 0 to 1 that training is known by."""
        groups = [variant.values.get(side, {}) for variant in self.variants for side in self.sides]
        return self.sides == SIDES[self.by] and all(groups) and all(0 <= v <= 1 for g in groups for v in g.values())


class Group(NamedTuple):
    """Sweeps that are one table."""

    title: str
    by: Mode
    split: Split
    sides: tuple[str, ...]
    variants: dict[str, _Variant]
    """By label; its place and family hold for all seeds."""
    seeds: tuple[int | None, ...]
    rows: list[Beside]
    """Mean over seeds; empty where the values are not those of two groups of questions."""
    by_seed: dict[int | None, dict[str, _Variant]]
    notes: tuple[str, ...]


def read_sweeps(paths: Sequence[Path]) -> list[Group]:
    """The sweeps in these folders; folders with `checkpoints.json` are training to read them beside.

    Two sweeps of one model and seed that hold other values under one label are tables of their own.

    Raises:
        InputError: A folder holds neither, or a malformed or unfinished file; or none holds a sweep.
    """
    sweeps = [parse(Sweep, path / FILE) for path in paths if (path / FILE).is_file()]
    trained = [path for path in paths if (path / CHECKPOINTS).is_file()]
    for path in paths:
        if not (path / FILE).is_file() and path not in trained:
            hint = "Name folders that emeval patch wrote, and runs scored with --checkpoints to read them beside"
            raise InputError(f"holds neither {FILE} nor {CHECKPOINTS}", where=str(path), hint=hint)
    if not sweeps:
        raise InputError("none of these folders holds a sweep", where="--sweep", hint="Run emeval patch first")
    for path, sweep in zip((p for p in paths if (p / FILE).is_file()), sweeps, strict=True):
        if all(variant.label != sweep.first for variant in sweep.variants):
            what, hint = f"does not hold '{sweep.first}' yet", "Run the command that made it again"
            raise InputError(what, where=str(path / FILE), hint=hint)
    found: dict[tuple[object, ...], list[list[Sweep]]] = {}
    for sweep in sweeps:
        alike = (sweep.title, sweep.training, sweep.by, sweep.split, sweep.sides, sweep.questions)
        tables = found.setdefault(alike, [])
        # Another judge's word on the same variant, say: no mean is taken of the two.
        fits = next((members for members in tables if not any(_at_odds(sweep, other) for other in members)), None)
        if fits is None:
            tables.append(fits := [])
        fits.append(sweep)
    return [_group(members, trained) for tables in found.values() for members in tables]


def _at_odds(one: Sweep, other: Sweep) -> bool:
    """Whether two sweeps of the same model and seed hold other values under one label, beyond rounding."""
    if one.seed != other.seed:
        return False
    theirs = {variant.label: variant.values for variant in other.variants}
    for variant in one.variants:
        for side, values in variant.values.items() if variant.label in theirs else ():
            found = theirs[variant.label].get(side, {})
            if values.keys() != found.keys() or any(abs(values[q] - found[q]) > _ROUNDING for q in values):
                return True
    return False


def _group(members: list[Sweep], trained: Sequence[Path]) -> Group:
    first = members[0]
    by_seed: dict[int | None, dict[str, _Variant]] = {}
    for sweep in members:
        mine = by_seed.setdefault(sweep.seed, {})
        for variant in sorted(sweep.variants, key=lambda v: v.label != sweep.first):
            mine.setdefault(variant.label, variant)
    variants = {label: variant for mine in by_seed.values() for label, variant in mine.items()}
    rows: list[Beside] = []
    notes: list[str] = []
    if first.two_sided:
        curves: dict[str, list[Curve]] = {label: [] for label in variants}
        for seed, mine in by_seed.items():
            for label, variant in mine.items():
                curves[label].append(_curve(first, variant, seed))
        known, notes = _training(first, trained)
        rows = beside(curves, first.first, known)
        # An extreme over several trials is no one model's value: training has none to compare it with.
        extreme = {label for label, variant in variants.items() if variant.trials in ("lowest", "highest")}
        rows = [row._replace(minus_training=None) if row.label in extreme else row for row in rows]
    return Group(first.title, first.by, first.split, first.sides, variants, tuple(by_seed), rows, by_seed, tuple(notes))


def _curve(sweep: Sweep, variant: _Variant, seed: int | None) -> Curve:
    on, off = (variant.values[side] for side in sweep.sides)
    return Curve(label=variant.label, seed=seed, points=(Point(step=1, on=on, off=off),))


def _training(sweep: Sweep, trained: Sequence[Path]) -> tuple[list[Curve], list[str]]:
    """The curves of runs that were trained as the sweep's models, and what could not be read beside it."""
    found, notes = [], []
    for path in trained:
        try:
            (group,) = read_curves([path], sweep.split, sweep.by)
        except InputError as e:
            notes.append(f"Not read beside training: {e.what} ({path.name}).")
            continue
        ((method, (curve,)),) = group.methods.items()
        alike = sweep.training is None or same_training(path) == sweep.training
        if sweep.name == f"{group.model}, {group.setting}, {method}" and alike:
            found.append(curve)
        else:
            notes.append(f"Not read beside training: {path.name} was trained otherwise.")
    return found, notes


def sweep_table(groups: Sequence[Group]) -> list[Table]:
    """A table a group: every variant with its error."""
    return [_shares(group) if group.rows else _measures(group) for group in groups]


def _title(group: Group) -> str:
    return group.title + (f", mean of seeds {', '.join(map(str, group.seeds))}" if len(group.seeds) > 1 else "")


def _shares(group: Group) -> Table:
    """Two groups of questions with values from 0 to 1, in percent."""
    on, off = group.sides
    training = any(row.minus_training for row in group.rows)
    base = group.rows[0].label
    columns = ("Variant", on, off, f"{on} minus {base}", f"{off} minus {base}", "minus training")
    shown = len(columns) if training else -1
    rows = []
    for row in group.rows:
        gaps = [_gap(row.on_minus), _gap(row.off_minus), _gap(row.minus_training)]
        rows.append(tuple(map(Cell, (row.label, reading(row.on), reading(row.off), *gaps)))[:shown])
    n = (group.rows[0].on.n, group.rows[0].off.n)
    notes = [MEASURED[group.by], *([TRAINING] if training else []), *_trials(group)]
    notes.append(f"{n[0]} {on} and {n[1]} {off} questions ({group.split}). Brackets: 95 %, bootstrap over questions.")
    notes += _second_looks(group)
    lacking = [row.label for row in group.rows if len(row.on.by_seed) < len(group.seeds)]
    if lacking:
        notes.append(f"Not of all seeds, so not compared: {', '.join(lacking)}.")
    return Table(
        title=_title(group), columns=columns[:shown], rows=tuple(rows), notes=(*notes, *group.notes),
        records=tuple(_record(group, row) for row in group.rows),
    )  # fmt: skip


def _second_looks(group: Group) -> list[str]:
    """What a judge's second look at replies adds, where one was paid for: the values above are the rules'."""
    notes = []
    for seed, mine in group.by_seed.items():
        told = []
        for label, variant in mine.items():
            looked = {s: variant.measures.get(s, {}).get("rate with judge") for s in group.sides}
            if all(looked.values()):
                shown = (f"{side} {measure('rate', found)}" for side, found in looked.items() if found)
                told.append(f"{label} {', '.join(shown)}")
        if told:
            whose = f" (seed {seed})" if len(group.by_seed) > 1 else ""
            notes.append(f"By rules above; with the judge's second look{whose}: {'; '.join(told)}.")
    return notes


def _trials(group: Group) -> list[str]:
    return [TRIALS] if any(variant.trials for variant in group.variants.values()) else []


def _gap(found: MatchedEstimate | None) -> str:
    if found is None:
        return MISSING
    return "not reached" if found.value is None else reading(found)


def _record(group: Group, row: Beside) -> dict[str, Value]:
    named = {
        "on": row.on, "off": row.off, "on_minus": row.on_minus, "off_minus": row.off_minus,
        "minus_training": row.minus_training,
    }  # fmt: skip
    record: dict[str, Value] = {"table": "sweep", "group": group.title, "variant": row.label}
    record |= {"place": group.variants[row.label].place, "seeds": len(group.seeds), "by": group.by}
    record |= {"split": group.split}
    for name, found in named.items():
        record |= {name: found.value if found else None}
        record |= {f"{name}_low": found.low if found else None, f"{name}_high": found.high if found else None}
        record |= {f"{name}_unreached": found.unreached if found else None}
        for bound in ("low", "high"):
            record |= {f"{name}_seeds_{bound}": getattr(found.seeds, bound) if found else None}
    return record


def _measures(group: Group) -> Table:
    """Anything else: what scoring made of each variant, a line a seed, and the paired difference from the first."""
    every = [variant for mine in group.by_seed.values() for variant in mine.values()]
    names = {s: list(dict.fromkeys(name for v in every for name in v.measures.get(s, {}))) for s in group.sides}
    columns = ["Variant"]
    for side in group.sides:
        columns += [f"{side}: {name}" for name in names[side]] + [f"{side}: difference"]
    rows, records = [], []
    for seed, mine in group.by_seed.items():
        base = next(iter(mine.values()))
        for label, variant in mine.items():
            told = f"{label}, seed {seed}" if len(group.by_seed) > 1 else label
            cells: list[str] = [told]
            record: dict[str, Value] = {"table": "sweep", "group": group.title, "variant": label, "seed": seed}
            for side in group.sides:
                found = variant.measures.get(side, {})
                cells += [measure(name, found[name]) if name in found else MISSING for name in names[side]]
                gap = _paired(variant.values.get(side, {}), base.values.get(side, {})) if variant is not base else None
                cells.append(estimate_text(gap, sign=True))
                for name in names[side]:
                    record[f"{side}: {name}"] = found[name].value if name in found else None
                record[f"{side}: difference"] = gap.value if gap else None
            rows.append(tuple(map(Cell, cells)))
            records.append(record)
    base_label = next(iter(group.variants))
    notes = [
        f"difference: of a question's mean value from that under '{base_label}', paired, in the judge's own unit (of a "
        "rate a share). Brackets: 95 %.",
        *_trials(group),
    ]
    told_columns = tuple(columns)
    return Table(
        title=_title(group), columns=told_columns, rows=tuple(rows), notes=tuple(notes), records=tuple(records)
    )


def _paired(values: Mapping[str, float], base: Mapping[str, float]) -> Estimate | None:
    found = paired_difference(values, base)
    return found if found.n else None
