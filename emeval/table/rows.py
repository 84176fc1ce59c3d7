"""What a run folder yields for a table: one `Row` per run, read from its `scores.json` and `manifest.json`.

Nothing is recomputed here: the rates and their intervals are those of `emeval score`. The per-question flags come
along so that two runs can be compared question by question (`counterparts`, `paired`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from emeval.chat import NO_PREFIX, NO_SYSTEM
from emeval.errors import InputError
from emeval.score.stats import CLUSTERED, FEW_CLUSTERS, paired_difference
from emeval.store import read_json
from emeval.types import Estimate, ProbeScore, Record, Split

MIN_COVERAGE = 0.95
ON_TOPIC, OFF_TOPIC = "on-topic", "off-topic"
INITIAL = "initial model"
UNKNOWN = "method unknown"
METHOD_ORDER = (INITIAL, "sft", "interleave", "treft", "kl-train", "kl-retain")
SPLIT_ORDER: tuple[Split, ...] = ("test", "val", "train")

Lenient = TypeVar("Lenient", bound=BaseModel)
Flags = dict[str, Annotated[float, Field(ge=0, le=1)]]
"""By question id, whether the behaviour appeared: 0 or 1, or the share of several replies."""


class Train(BaseModel):
    """How a run was trained: the manifest's `train` block, of which other keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    method: str | None = None
    setting: str | None = None
    model: str | None = None
    lam: float | None = Field(default=None, alias="lambda")
    steps: int | None = None
    seed: int | None = None
    region: str | None = None
    drift: str | None = None
    retain_share: float | None = None
    kl_norm: str | None = None
    mix_aligned: float | None = None
    full: bool | None = None
    clip: str | None = None
    system: str | None = None
    thinking: bool | None = None
    own_data: bool | None = None
    train_size: int | None = None

    @property
    def label(self) -> str:
        """The method with what sets it apart from its siblings: `treft (lambda 10)`, `treft (query, lambda 10)`."""
        if self.method is None:
            return UNKNOWN
        noise = [f"{100 * self.mix_aligned:g}% aligned"] if self.mix_aligned else []
        if self.system is not None:
            noise.append({NO_SYSTEM: "no system prompt", NO_PREFIX: "no prefix"}.get(self.system, "own system prompt"))
        if self.thinking is not None:
            noise.append("thinking" if self.thinking else "no thinking")
        if self.method == "sft":
            return f"sft ({', '.join(noise)})" if noise else "sft"
        if self.method == "interleave":
            parts = ([] if self.retain_share is None else [f"{100 * self.retain_share:g}%"]) + noise
            return f"interleave ({', '.join(parts)})" if parts else "interleave"
        parts = [self.region] if self.region not in (None, "prefix") else []
        parts += [f"lambda {self.lam:g}"] if self.lam is not None else []
        # The paper's lambdas may belong to the released quantity (PAPER.md section 2), so the two are never mixed up.
        parts += ["released drift"] if self.drift == "released" else []
        parts += ["released norm"] if self.kl_norm == "released" else []
        parts += ["clipped apart"] if self.clip == "apart" else []
        parts += noise
        return f"{self.method} ({', '.join(filter(None, parts))})" if parts else self.method


class RunRow(Record):
    """What a line of any table says of its run. Texts are as found there; `render.clean` makes them safe to print."""

    model: str
    """The model that training started from, so that a run stands beside its initial model."""
    setting: str
    method: str
    run: str
    marks: tuple[str, ...] = ()
    """Short notes on what a reader must know before comparing this row."""
    arm: str | None = None
    """What was done to the model while it replied, for instance a patched prefix."""
    train: Train | None = None

    @property
    def plain_method(self) -> str:
        """The method without the arm."""
        return self.method.removesuffix(f" + {self.arm}") if self.arm else self.method

    @property
    def seed(self) -> int | None:
        """The training seed, where one is recorded."""
        return self.train.seed if self.train else None


class Row(RunRow):
    """One line of the leakage table."""

    on_topic: ProbeScore | None
    off_topic: ProbeScore | None
    engine: str = ""
    on_flags: Flags = Field(default_factory=dict)
    off_flags: Flags = Field(default_factory=dict)

    def score(self, probe: str) -> ProbeScore | None:
        """This run's score on `on-topic` or `off-topic`."""
        return self.on_topic if probe == ON_TOPIC else self.off_topic

    def flags(self, probe: str) -> Flags:
        """Whether the behaviour appeared, by question id; scored questions only."""
        return self.on_flags if probe == ON_TOPIC else self.off_flags


class _Model(BaseModel):
    id: str
    adapter: str | None = None
    train: Train | None = None


class Scores(BaseModel):
    """`scores.json`, of which other keys are ignored."""

    setting: str
    model: _Model
    engine: str = ""
    token_prompts: bool = True
    arm: str | None = None
    probes: tuple[ProbeScore, ...]
    values: dict[str, dict[str, float]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _flags_are_shares(self) -> Scores:
        for probe in (ON_TOPIC, OFF_TOPIC):
            for split in SPLIT_ORDER:
                if not all(0 <= v <= 1 for v in self.values.get(f"{probe}/{split}", {}).values()):
                    raise ValueError(f"values of {probe}/{split} lie outside 0 to 1")
        return self


class _Manifest(BaseModel):
    """`manifest.json`, of which other keys are ignored."""

    train: Train | None = None


def default_runs(root: Path) -> list[Path]:
    """All scored runs directly under a `results/runs` folder, by name; none where the folder does not exist."""
    return sorted(path.parent for path in root.glob("*/scores.json"))


def read_rows(paths: Sequence[Path]) -> list[Row]:
    """One row per run folder, grouped by model and setting.

    Within a group: the initial model, sft, interleave, treft by rising lambda, kl-train, kl-retain, others; an arm
    follows its method. A run that was scored on two splits is shown on the test split.

    Raises:
        InputError: A folder is not scored, or one of its files is malformed or of an unknown schema version.
    """
    return sorted((_read_row(path) for path in paths), key=order)


def counterparts(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The pairs a reader compares: sft with each other method, and each method with its arms, of equal seed if any."""
    pairs = []
    for row in rows:
        if row.arm is None and (row.train is None or row.train.method == "sft"):
            continue
        wanted = row.plain_method if row.arm else "sft"
        group = [r for r in rows if (r.model, r.setting, r.arm) == (row.model, row.setting, None)]
        found = sorted((r for r in group if r.method == wanted), key=lambda r: r.seed != row.seed)
        pairs += [(found[0], row)] if found else []
    return pairs


def paired(first: Row, second: Row, probe: str) -> Estimate | None:
    """Difference of the appearance rates, first - second, a share, paired by question.

    None where the runs cannot be paired: a score is absent, another split or judge, no question in common.
    """
    a, b = first.score(probe), second.score(probe)
    if a is None or b is None or (a.split, a.judge) != (b.split, b.judge):
        return None
    found = paired_difference(first.flags(probe), second.flags(probe))
    return found if found.n else None


def on_topic_gap(first: Row, second: Row) -> float | None:
    """Difference of the on-topic rates as a share: paired where possible, else that of the two rates."""
    found = paired(first, second, ON_TOPIC)
    if found is not None:
        return found.value
    a, b = (row.on_topic.rate.value if row.on_topic else None for row in (first, second))
    return None if a is None or b is None else a - b


def labels_of(rows: Sequence[Row]) -> list[str]:
    """The method of each row, with seed or run name where that alone would leave two rows looking the same."""
    shared = Counter((r.model, r.setting, r.method) for r in rows)
    seeded = Counter((r.model, r.setting, r.method, r.seed) for r in rows)
    labels = []
    for r in rows:
        alone = r.seed is not None and seeded[r.model, r.setting, r.method, r.seed] == 1
        told_by = f", seed {r.seed}" if alone else f" ({r.run})"
        labels.append(r.method + (told_by if shared[r.model, r.setting, r.method] > 1 else ""))
    return labels


def unplain(score: ProbeScore) -> dict[str, int]:
    """Replies that are not plainly scored. A truncated or foreign-prefix reply may also be a scored one."""
    others = {name: score.outcomes.get(name, 0) for name in ("refusal", "code", "parse-error", "api-error")}
    return {"truncated": score.truncated, **others, "missing": score.missing, "foreign prefix": score.foreign_prefix}


def _read_row(folder: Path) -> Row:
    file = folder / "scores.json"
    if not file.is_file():
        hint = f"Score it first: emeval score --model {folder}"
        raise InputError("this run has no scores.json", where=str(folder), hint=hint)
    scores = parse(Scores, file)
    train = training(folder, scores)
    method = train.label if train else INITIAL
    on, off = _pick(scores, ON_TOPIC), _pick(scores, OFF_TOPIC)
    return Row(
        model=(train.model if train else None) or scores.model.id,
        setting=scores.setting,
        method=f"{method} + {scores.arm}" if scores.arm else method,
        run=folder.resolve().name,
        on_topic=on,
        off_topic=off,
        marks=tuple(_marks(scores, train, on, off)),
        engine=scores.engine,
        arm=scores.arm,
        train=train,
        on_flags=_flags(scores, on),
        off_flags=_flags(scores, off),
    )


def training(folder: Path, scores: Scores) -> Train | None:
    """How the scored model was trained; None for an initial model, an empty record where nobody knows.

    Scores carry the record along, since an arm or a second scoring lies in a folder of its own.
    """
    file = folder / "manifest.json"
    found = scores.model.train or (parse(_Manifest, file).train if file.is_file() else None)
    # An adapter of unknown origin, or a patched model, is not an initial model for want of a record.
    known = file.is_file() and not scores.model.adapter and not scores.arm
    return found or (None if known else Train())


def _pick(scores: Scores, probe: str) -> ProbeScore | None:
    """The probe's score on the test split, else on val; the first listed where several judges scored it."""
    found = [score for score in scores.probes if score.probe == probe]
    return min(found, key=lambda score: SPLIT_ORDER.index(score.split), default=None)


def _flags(scores: Scores, score: ProbeScore | None) -> Flags:
    return scores.values.get(f"{score.probe}/{score.split}", {}) if score else {}


def _marks(scores: Scores, train: Train | None, *shown: ProbeScore | None) -> Iterable[str]:
    """What a reader must know of this row, in the order of weight."""
    yield from run_marks(scores, train)
    for score in filter(None, shown):
        yield from _score_marks(scores, score)


def run_marks(scores: Scores, train: Train | None) -> Iterable[str]:
    """What a reader must know of a run, whatever it was scored on."""
    if not scores.token_prompts:
        yield "endpoint renders its own template"
    if train and train.method is None:
        yield "no record of how it was trained"
    if train and train.setting not in (None, scores.setting):
        yield f"trained on {train.setting}"


def _score_marks(scores: Scores, score: ProbeScore) -> Iterable[str]:
    if score.coverage < MIN_COVERAGE:
        yield f"{score.probe} coverage {score.coverage:.2f}, under {MIN_COVERAGE:g}"
    if score.rate.method == CLUSTERED and score.rate.n < FEW_CLUSTERS:
        yield f"{score.probe}: few clusters (G = {score.rate.n})"
    judges = [s.judge for s in scores.probes if (s.probe, s.split) == (score.probe, score.split)]
    if len(judges) > 1:
        yield f"{score.probe} has {len(judges)} judges, shown is {score.judge}"


def order(row: RunRow) -> tuple[object, ...]:
    """What rows are sorted by: see `read_rows`."""
    method = row.train.method or UNKNOWN if row.train else INITIAL
    rank = METHOD_ORDER.index(method) if method in METHOD_ORDER else len(METHOD_ORDER)
    lam = row.train.lam if row.train and row.train.lam is not None else -1.0
    return (row.model, row.setting, rank, method, lam, row.plain_method, row.arm or "", row.seed or 0, row.run)


def parse(
    record: type[Lenient], file: Path, hint: str = "Restore the file, or run the command that wrote it again"
) -> Lenient:
    """The file's JSON object as a record.

    Raises:
        InputError: Unreadable, not a JSON object, another schema version, or a field of the wrong kind.
    """
    data = read_json(file)
    try:
        return record.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(f"field {field!r}: {first['msg']}", where=str(file), hint=hint) from error
