"""Several interventions on one model, one after the other: measured, kept, and read beside the model left alone.

`sweep.json` holds every variant's values by question. Generated replies lie in `variants/`, each a scored run of its
own, judged like any other. What the file holds is not measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from emeval import models
from emeval.chat import Renderer
from emeval.config import CauseConfig, ScoreConfig
from emeval.engine.likelihood import reply_logprobs
from emeval.engine.patch import Patch
from emeval.errors import InputError
from emeval.pipeline import Arm, origin, score
from emeval.probe.plan import ScorePlan, plan_scoring
from emeval.probe.values import counting, read_values, sides_of
from emeval.provenance import facts, now
from emeval.score.stats import mean_t
from emeval.store import Jsonl, Run, read_json, sha256_of, slug, write_json
from emeval.table.sweeps import FILE
from emeval.types import SCHEMA_VERSION, Estimate, Judgement, OnCount, Say

OVER_TRIALS: dict[str, Callable[[Sequence[float]], float]] = {
    "average": lambda values: sum(values) / len(values),
    "lowest": min,
    "highest": max,
}
"""What is made of a question's trials, before the mean over questions."""

Values = dict[str, dict[str, list[float]]]
"""By group of questions and question id, the value of each trial."""


@dataclass(frozen=True)
class Variant:
    """One thing to try."""

    label: str
    """As tables call it; also names its folder."""
    arm: Arm | None
    """None is the model left alone."""
    place: float | None = None
    """Where it stands in a plot over layers or tokens."""
    changed: dict[str, Any] = field(default_factory=dict)
    """Settings of the scoring that differ, for instance the system prompt."""


@dataclass
class Sweep:
    """A command's variants.

    Args:
        config: The command's settings.
        name: What the default folder is called, behind model and setting.
        told: What the file says of the sweep, besides what all have.
        variants: What to try; the first one is what the others are read beside.
        load: Gives the model left alone, loaded; asked for where a variant brings none.
        drop: Lets go of all models, before a judge is served.
        on_reply: Progress.
        say: Told what a user should know.
    """

    config: CauseConfig
    name: str
    told: dict[str, Any]
    variants: Sequence[Variant]
    load: Callable[[models.Placement], Any]
    drop: Callable[[], None]
    on_reply: OnCount
    say: Say

    def run(self) -> Path:
        """Measure what is missing. Returns the folder.

        Raises:
            InputError: For bad input (nothing written), or a folder that holds something else.
            IncompleteError: If a variant's coverage ends below `min_coverage`.
        """
        config, plan = self.config, plan_scoring(settings_of(self.config))
        by = [] if config.by == "generation" else [config.by]
        default = slug("-".join([plan.name, plan.setting.name, self.name, *by]))
        run = Run(config.out or Path("results") / "runs" / default)
        if run.manifest().get("train") or run.manifest().get("score"):
            raise InputError("holds another run", where=str(run.path), hint="Choose another folder with --out")
        sides = self._sides(plan)
        with run.locked():
            file = _File(run, plan, self._head(plan, sides))
            todo = [(i, variant) for i, variant in enumerate(self.variants) if not file.has(variant)]
            if config.by == "generation" and config.judge not in (None, "none"):
                for number, variant in todo:  # a judge that is served here needs the memory
                    self._score(run, plan, number, variant, judged=False)
                self.drop()
            for number, variant in todo:
                measure = self._scored if config.by == "generation" else self._read
                file.add(variant, *measure(run, plan, number, variant))
            run.update_manifest(sweep={"resolved": config.model_dump(mode="json"), "finished": now(), **facts()})
        return run.path

    def _sides(self, plan: ScorePlan) -> tuple[str, ...]:
        if self.config.by == "generation":
            return tuple(plan.specs)
        way, sides = sides_of(plan)
        wanted = sides if way == "probability" else ("contrast",)
        if self.config.probes and set(self.config.probes) != set(wanted):
            what = f"without generating, {' and '.join(wanted)} can be read"
            raise InputError(what, where="--probes", hint="Leave it out, or --by")
        return sides

    def _head(self, plan: ScorePlan, sides: tuple[str, ...]) -> dict[str, Any]:
        by = "generation" if self.config.by == "generation" else sides_of(plan)[0]
        return {
            "setting": plan.setting.name,
            "model": {"id": plan.name} | origin(plan.source),
            "by": by,
            "split": self.config.split,
            "sides": list(sides),
            **self.told,
        }

    # --------------------------------------------------------------------------------------------- without generating

    def _read(self, run: Run, plan: ScorePlan, number: int, variant: Variant) -> tuple[Values, dict[str, Estimate]]:
        arm = variant.arm
        if variant.changed or (arm and (arm.reworded or arm.reencoded)):
            plan = plan_scoring(settings_of(self.config, **variant.changed), arm)
        where, total = models.placement(self.config.device, self.config.dtype), len(plan.all_asks)
        assert plan.renderer is not None  # a model in process has a tokenizer
        model, patch = self._loaded(arm, where, plan.renderer)
        read = partial(reply_logprobs, model, batch_size=self.config.batch_size, patch=patch)
        advance = counting(number * total, len(self.variants) * total, self.on_reply)
        return read_values(plan, read, advance), {}

    def _loaded(self, arm: Arm | None, where: models.Placement, renderer: Renderer) -> tuple[Any, Patch | None]:
        return arm.patched(where, renderer) if arm and arm.patched else (self.load(where), None)

    # ------------------------------------------------------------------------------------------------------ generated

    def _scored(self, run: Run, plan: ScorePlan, number: int, variant: Variant) -> tuple[Values, dict[str, Estimate]]:
        path = self._score(run, plan, number, variant, judged=True)
        split, probes = self.config.split, read_json(path / "scores.json")["probes"]
        found = {p["probe"]: p for p in reversed(probes) if p["split"] == split}
        first = {name: Estimate.model_validate(next(iter(found[name]["measures"].values()))) for name in plan.specs}
        return _judged(Run(path), {name: found[name]["judge"] for name in plan.specs}, split), first

    def _score(self, run: Run, plan: ScorePlan, number: int, variant: Variant, *, judged: bool) -> Path:
        count = len(plan.all_asks)

        def advance(done: int, _total: int) -> None:
            self.on_reply(number * count + min(done, count), len(self.variants) * count)

        out = run.path / "variants" / slug(variant.label)
        arm = variant.arm or Arm(variant.label, partial(self._alone))
        settings = settings_of(self.config, out=out, **variant.changed)
        return score(settings, arm=arm, on_reply=advance, say=self.say, judged=judged)

    def _alone(self, where: models.Placement, renderer: Renderer) -> tuple[Any, Patch]:
        model = self.load(where)
        return model, Patch(lambda: nullcontext(model))


def settings_of(config: CauseConfig, **changed: Any) -> ScoreConfig:
    """As the command was given, for one scoring."""
    given = set(ScoreConfig.model_fields) & config.model_fields_set | {"engine", "device"}
    return ScoreConfig(**config.model_dump(include=given) | {"by": "probability"} | changed)


def _judged(run: Run, judges: dict[str, str], split: str) -> Values:
    """A scored run's values by probe and question, one a reply."""
    found: Values = {probe: {} for probe in judges}
    for j in Jsonl(run.judgements_path, Judgement).read():
        wanted = (j.split, j.judge) == (split, judges.get(j.probe)) and not j.foreign_prefix
        if wanted and j.value is not None:
            found[j.probe].setdefault(j.question_id, []).append(j.value)
    return found


class _File:
    """`sweep.json`: written anew after every variant, whole."""

    def __init__(self, run: Run, plan: ScorePlan, head: dict[str, Any]) -> None:
        self.path = run.path / FILE
        identity = sha256_of(plan.weights_id, *(ask.key for ask in plan.all_asks))
        self.value = {"schema_version": SCHEMA_VERSION, **head, "identity": identity, "variants": []}
        if not self.path.exists():
            return
        before = read_json(self.path)
        changed = [k for k in (*head, "identity") if k != "model" and before.get(k) != self.value[k]]
        if changed:
            what = f"holds another sweep: {', '.join(changed)} differ"
            raise InputError(what, where=str(self.path), hint="Choose another folder with --out")
        self.value["variants"] = before["variants"]

    def has(self, variant: Variant) -> bool:
        """Whether it was measured; of several trials all lines are written at once."""
        return any(found["of"] == variant.label for found in self.value["variants"])

    def add(self, variant: Variant, values: Values, estimates: dict[str, Estimate]) -> None:
        """One line a variant; of one with trials, one for each way to look at them."""
        trials = bool(variant.arm and variant.arm.trials and variant.arm.trials > 1)
        for name, of in OVER_TRIALS.items() if trials else (("", OVER_TRIALS["average"]),):
            by_question = {side: {q: of(v) for q, v in found.items()} for side, found in values.items()}
            own = estimates if name in ("", "average") else {}
            found = {side: own.get(side) or mean_t(v.values()) for side, v in by_question.items()}
            self.value["variants"].append(
                {
                    "label": f"{variant.label}, {name}" if name else variant.label,
                    "of": variant.label,
                    "place": variant.place,
                    "values": by_question,
                    "estimates": {side: estimate.model_dump() for side, estimate in found.items()},
                }
            )
        write_json(self.path, self.value | {"written": now(), "made_with": facts()})
