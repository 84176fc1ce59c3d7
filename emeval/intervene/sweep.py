"""Several interventions on one model, one after the other: measured, kept, and read beside the model left alone.

`sweep.json` holds every variant's values by question. Generated replies lie in `variants/`, each a scored run of its
own, judged like any other. What the file holds is not measured again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from emeval import models
from emeval.config import CauseConfig
from emeval.engine.choose import check_engine
from emeval.engine.likelihood import reply_logprobs
from emeval.errors import IncompleteError, InputError
from emeval.intervene.asked import settings_of
from emeval.judge.panel import PROMPT_OF, Panel
from emeval.pipeline import Arm, origin, score
from emeval.probe.plan import ScorePlan, plan_scoring
from emeval.probe.values import counting, read_values, sides_of
from emeval.provenance import facts, now
from emeval.score.matched import SIDES
from emeval.store import Jsonl, Run, read_json, sha256_of, slug, write_json
from emeval.table.curves import same_training
from emeval.table.sweeps import FILE
from emeval.types import SCHEMA_VERSION, Completion, Estimate, Judgement, OnCount, ProbeScore, Say

OVER_TRIALS: dict[str, Callable[[Sequence[float]], float]] = {
    "average": lambda values: sum(values) / len(values),
    "lowest": min,
    "highest": max,
}
"""What is made of a question's trials, before the mean over questions."""

Values = dict[str, dict[str, list[float]]]
"""By group of questions and question id, the value of each trial."""
Measures = dict[str, dict[str, Estimate]]
"""By probe, what scoring made of it."""


@dataclass(frozen=True)
class Variant:
    """One thing to try."""

    label: str
    """As tables call it; also names its folder."""
    arm: Arm
    """What is done; it brings the loaded model along."""
    place: float | None = None
    """Where it stands in a plot over layers or tokens."""
    family: str = ""
    """What it shares with those it makes a line with there."""
    axis: str = "layer"
    """What the plot counts."""
    changed: dict[str, Any] = field(default_factory=dict)
    """Settings of the scoring that differ, for instance the system prompt."""


@dataclass
class Sweep:
    """A command's variants.

    Args:
        config: The command's settings, as `planned` gives them; `plan` and `generates` alike.
        plan: What is asked.
        generates: Whether replies are made.
        name: What the default folder is called, behind model and setting.
        told: What the file says of the sweep, besides what all have.
        variants: What to try; the first one is what the others are read beside.
        drop: Lets go of all models, before a judge is served.
        on_reply: Progress.
        say: Told what a user should know.
    """

    config: CauseConfig
    plan: ScorePlan
    generates: bool
    name: str
    told: dict[str, Any]
    variants: Sequence[Variant]
    drop: Callable[[], None]
    on_reply: OnCount
    say: Say

    def check(self) -> tuple[ScorePlan, Run]:
        """All that can be wrong before anything is written, loaded or paid: what is asked, and of which folder.

        Raises:
            InputError: For whatever is wrong.
        """
        config, plan = self.config, self.plan
        name = self.name + ("" if self.generates else f"-{sides_of(plan)[0]}")
        whole = f"{plan.name}-{plan.setting.name}-{name}"
        default = f"{slug(f'{plan.name}-{plan.setting.name}')[:40]}-{slug(name)[:30]}-{sha256_of(whole)[:6]}"
        run = Run(config.out or Path("results") / "runs" / default)
        if run.manifest().get("train") or run.manifest().get("score"):
            raise InputError("holds another run", where=str(run.path), hint="Choose another folder with --out")
        panel = Panel(plan.config, plan.root, run)
        for probe, spec in plan.specs.items():
            panel.check(spec.kind, probe)
            if spec.kind in PROMPT_OF and not panel.has_model:
                hint = "Give --judge MODEL, or score one variant at a time with --judge none"
                raise InputError(f"without a judge '{probe}' is not measured", where="--judge none", hint=hint)
        arms = [variant.arm for variant in self.variants]
        check_engine(
            plan.engine,
            plan.config,
            renders=plan.renderer is not None,
            patched=any(arm.patched and arm.intervenes for arm in arms),
            served=all(arm.served for arm in arms),
        )
        self._file(run)
        return plan, run

    def run(self) -> Path:
        """Measure what is missing. Returns the folder.

        Raises:
            InputError: For bad input (nothing written), or a folder that holds something else.
            IncompleteError: If variants ended with too little coverage; the others are measured and kept.
        """
        config = self.config
        plan, run = self.check()
        with run.locked():
            file = self._file(run)
            todo = [(i, variant) for i, variant in enumerate(self.variants) if not file.has(variant.label)]
            if self.generates and config.judge not in (None, "none"):
                for number, variant in todo:  # a judge that is served here needs the memory
                    with contextlib.suppress(IncompleteError):
                        self._score(run, plan, number, variant, judged=False)
                self.drop()
            thin = []
            for number, variant in todo:
                try:
                    file.add(variant, *(self._scored if self.generates else self._read)(run, plan, number, variant))
                except IncompleteError as e:
                    thin.append((variant.label, e))
            run.update_manifest(sweep={"resolved": config.model_dump(mode="json"), "finished": now(), **facts()})
        if thin:
            label, first = thin[0]
            what = f"{len(thin)} of {len(self.variants)} variants are not whole; the first, '{label}': {first.what}"
            raise IncompleteError(what, where=str(run.path), hint=first.hint)
        return run.path

    def has(self, label: str) -> bool:
        """Whether a variant was measured before."""
        return self._file(self.check()[1]).has(label)

    def _file(self, run: Run) -> _File:
        panel = Panel(self.plan.config, self.plan.root, run)
        return _File(run, self._head(panel), [variant.label for variant in self.variants])

    def _head(self, panel: Panel) -> dict[str, Any]:
        """What the file says first; a folder with another one is refused."""
        config, plan = self.config, self.plan
        way, sides = sides_of(plan)[0], tuple(sides_of(plan)[1])
        asked = tuple(plan.specs)
        if self.generates:
            sides = SIDES["generation"] if set(asked) == set(SIDES["generation"]) else asked
        behaviour = plan.setting.behaviour
        how = [plan.engine, config.dtype]
        if plan.engine == "transformers":
            how = [plan.engine, models.placement(config.device, config.dtype).dtype]
        if self.generates and panel.has_model:
            how += [panel.prompt(kind).id for kind in PROMPT_OF]
            how += [str(getattr(config, name)) for name in ("judge", "judge_url", "judge_mode", "coherence")]
        how += [behaviour.model_dump_json()] if behaviour else []
        trained = plan.source.run if plan.source else None
        return {
            "setting": plan.setting.name,
            "model": {"id": plan.name} | origin(plan.source),
            "training": same_training(trained) if trained else None,
            "by": "generation" if self.generates else way,
            "split": config.split,
            "sides": list(sides),
            "baseline": self.variants[0].label,
            "asked": sha256_of(*sorted(f"{ask.question.probe}/{ask.question.id}" for ask in plan.all_asks)),
            **self.told,
            "identity": sha256_of(plan.weights_id, *how, *(ask.key for ask in plan.all_asks)),
        }

    # --------------------------------------------------------------------------------------------- without generating

    def _read(self, run: Run, plan: ScorePlan, number: int, variant: Variant) -> tuple[Values, Measures]:
        arm = variant.arm
        if variant.changed or arm.reworded or arm.reencoded:
            plan = plan_scoring(settings_of(self.config, **variant.changed), arm)
        where, total = models.placement(self.config.device, self.config.dtype), len(plan.all_asks)
        assert plan.renderer is not None and arm.patched is not None  # read in process, where arms bring the model
        model, patch = arm.patched(where, plan.renderer)
        read = partial(reply_logprobs, model, batch_size=self.config.batch_size, patch=patch)
        advance = counting(number * total, len(self.variants) * total, self.on_reply)
        return read_values(plan, read, advance), {}

    # ------------------------------------------------------------------------------------------------------ generated

    def _scored(self, run: Run, plan: ScorePlan, number: int, variant: Variant) -> tuple[Values, Measures]:
        path = self._score(run, plan, number, variant, judged=True)
        split, probes = self.config.split, read_json(path / "scores.json")["probes"]
        found = {p["probe"]: ProbeScore.model_validate(p) for p in reversed(probes) if p["split"] == split}
        values = _judged(Run(path), {name: found[name].judge for name in plan.specs}, split)
        return values, {name: found[name].measures for name in plan.specs}

    def _score(self, run: Run, plan: ScorePlan, number: int, variant: Variant, *, judged: bool) -> Path:
        count = len(plan.all_asks)

        def advance(done: int, _total: int) -> None:
            self.on_reply(number * count + min(done, count), len(self.variants) * count)

        changed = dict(variant.changed)
        if judged and self.config.max_cost is not None:
            changed["max_cost"] = self._left(run, variant)
        settings = settings_of(self.config, out=folder_of(run, variant), **changed)
        return score(settings, arm=variant.arm, on_reply=advance, say=self.say, judged=judged)

    def _left(self, run: Run, variant: Variant) -> float:
        """What of the command's money the other variants have left for this one. IncompleteError for none."""
        assert self.config.max_cost is not None  # asked before
        others = [folder_of(run, other) for other in self.variants if other is not variant]
        spent = (Panel(self.plan.config, self.plan.root, Run(path)).budget.spent for path in others if path.exists())
        left = self.config.max_cost - sum(spent)
        if left <= 0:
            hint = "Raise --max-cost and run it again"
            raise IncompleteError("the cost limit is reached", where=str(run.path), hint=hint)
        return left


def folder_of(run: Run, variant: Variant) -> Path:
    """Where a variant's replies lie: labels may be alike in their first eighty characters."""
    return run.path / "variants" / f"{slug(variant.label)[:70]}-{sha256_of(variant.label)[:8]}"


def _judged(run: Run, judges: dict[str, str], split: str) -> Values:
    """A scored run's values by probe and question, one a sample: the mean over its turns."""
    samples = {c.key: c.sample for c in Jsonl(run.completions_path, Completion).read()}
    turns: dict[str, dict[str, dict[int, list[float]]]] = {probe: {} for probe in judges}
    for j in Jsonl(run.judgements_path, Judgement).read():
        wanted = (j.split, j.judge) == (split, judges.get(j.probe)) and not j.foreign_prefix
        if wanted and j.value is not None:
            of_question = turns[j.probe].setdefault(j.question_id, {})
            of_question.setdefault(samples.get(j.completion_key, 0), []).append(j.value)
    return {
        probe: {q: [sum(v) / len(v) for v in found.values()] for q, found in questions.items()}
        for probe, questions in turns.items()
    }


class _File:
    """`sweep.json`: written anew after every variant, whole.

    Raises:
        InputError: It is there, of another sweep.
    """

    def __init__(self, run: Run, head: dict[str, Any], order: Sequence[str]) -> None:
        self.path = run.path / FILE
        self._order = list(order)
        self.value = {"schema_version": SCHEMA_VERSION, **head, "variants": []}
        if not self.path.exists():
            return
        before = read_json(self.path)
        changed = [k for k in head if k not in ("model", "training") and before.get(k) != self.value[k]]
        if changed:
            what = f"holds another sweep: {', '.join(changed)} differ"
            raise InputError(what, where=str(self.path), hint="Choose another folder with --out")
        self.value["variants"] = before["variants"]

    def has(self, label: str) -> bool:
        """Whether a variant was measured; of several trials all lines are written at once."""
        return any(found["of"] == label for found in self.value["variants"])

    def add(self, variant: Variant, values: Values, measures: Measures) -> None:
        """One line a variant; of one with trials, one for each way to look at them."""
        trials = bool(variant.arm.trials and variant.arm.trials > 1)
        for name, of in OVER_TRIALS.items() if trials else (("", OVER_TRIALS["average"]),):
            own = measures if name in ("", "average") else {}
            self.value["variants"].append(
                {
                    "label": f"{variant.label}, {name}" if name else variant.label,
                    "of": variant.label,
                    "trials": name or None,
                    "place": variant.place,
                    "axis": variant.axis,
                    "family": variant.family,
                    "values": {side: {q: of(v) for q, v in found.items()} for side, found in values.items()},
                    "measures": {p: {n: e.model_dump() for n, e in found.items()} for p, found in own.items()},
                }
            )
        # One that was not whole at first is measured later, and stands in its place all the same.
        self.value["variants"].sort(key=lambda found: self._order.index(found["of"]))
        write_json(self.path, self.value | {"written": now(), "made_with": facts()})
