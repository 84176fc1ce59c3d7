"""`emeval patch`: a tuned model under one patch, or under many, one after the other, loaded once.

One patch whose replies are generated is a scored run like any other. Several, or anything measured without generating,
make a sweep: `sweep.json` holds every variant's values by question, beside those of the unpatched and the other model;
generated replies lie in `variants/`, each a run of its own. What the file holds is not measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from emeval import models
from emeval.chat import Renderer
from emeval.config import PatchConfig, ScoreConfig
from emeval.engine.likelihood import reply_logprobs
from emeval.engine.patch import Patch
from emeval.engine.patched import PatchedPrefix
from emeval.errors import InputError
from emeval.intervene.variants import OTHER, Variant, baselines, variants
from emeval.pipeline import Arm, origin, score
from emeval.probe.plan import ScorePlan, plan_scoring
from emeval.probe.values import counting, read_values, sides_of
from emeval.provenance import facts, now
from emeval.score.stats import mean_t
from emeval.store import Run, read_json, sha256_of, slug, write_json
from emeval.table.sweeps import FILE
from emeval.types import SCHEMA_VERSION, Estimate, OnCount, Say


def patch(config: PatchConfig, on_reply: OnCount = lambda done, total: None, say: Say = lambda text: None) -> Path:
    """Score a tuned model under what the settings ask for. Returns the run folder; a sweep's holds `sweep.json`.

    Raises:
        InputError: For bad input (nothing written), or a model that nobody knows the initial one of.
        IncompleteError: If coverage ends below `min_coverage`.
    """
    pairs = Pairs(config)
    plan = plan_scoring(_settings(config))
    assert plan.renderer is not None  # a model in process has a tokenizer
    todo = variants(config, models.layer_count(pairs.source), len(plan.renderer.prefix_ids()))
    if len(todo) == 1 and config.by == "generation":
        return score(_settings(config), arm=pairs.arm(todo[0]), on_reply=on_reply, say=say)
    return _Sweep(config, plan, pairs, [*baselines(config), *todo], on_reply, say).run()


def _settings(config: PatchConfig, **changed: Any) -> ScoreConfig:
    """As the command was given, for one scoring."""
    found = config.model_dump(include=set(ScoreConfig.model_fields) & config.model_fields_set | {"engine", "device"})
    return ScoreConfig(**found | {"by": "probability"} | changed)


class Pairs:
    """The tuned and the initial model of a command, loaded when first needed and kept.

    Raises:
        InputError: If nobody knows the initial one.
    """

    def __init__(self, config: Any) -> None:
        self.source = models.resolve(config.model, adapter=config.adapter)
        self.initial = models.resolve(config.initial) if config.initial else None
        if self.source.adapter is not None and self.initial is not None:
            raise InputError("an adapter's initial model is its base", where="--initial", hint="Leave it out")
        if self.source.adapter is None and self.initial is None:
            models.initial_of(self.source)
        self._loaded: models.Pair | None = None

    def load(self, where: models.Placement) -> models.Pair:
        """Both models."""
        if self._loaded is None:
            self._loaded = models.load_pair(self.source, where, self.initial)
        return self._loaded

    def drop(self) -> None:
        """Let go of them, for instance before a judge is served."""
        self._loaded = None

    def patched(self, variant: Variant, where: models.Placement, renderer: Renderer) -> tuple[Any, Patch]:
        """The model that answers under a variant, and what is put into it."""
        pair = self.load(where)
        return pair.holding(variant.into), variant.patch(pair, renderer.prefix_ids(), renderer.postfix_ids())

    def served(self, variant: Variant, renderer: Renderer) -> tuple[models.ModelSource, PatchedPrefix | None]:
        """What vLLM is to serve under a variant, and whose prefix is put into it."""
        sources = {"tuned": self.source, "initial": self.initial or models.initial_of(self.source)}
        source = sources[OTHER[variant.into]]
        prefix = PatchedPrefix(renderer.prefix_ids(), source.base, source.adapter) if variant.kind == "kv" else None
        return sources[variant.into], prefix

    def arm(self, variant: Variant) -> Arm:
        """The variant as something to score under."""
        key = self.initial.weights_id() if self.initial else ""
        return Arm(variant.label, partial(self.patched, variant), partial(self.served, variant), key=key)


@dataclass
class _Sweep:
    config: PatchConfig
    plan: ScorePlan
    pairs: Pairs
    todo: Sequence[Variant]
    on_reply: OnCount
    say: Say

    def run(self) -> Path:
        config, plan = self.config, self.plan
        parts = [plan.name, plan.setting.name, "patch", config.what, config.region]
        parts += [f"into-{config.into}"] if config.into != "tuned" else []
        parts += [config.by] if config.by != "generation" else []
        run = Run(config.out or Path("results") / "runs" / slug("-".join(parts)))
        if run.manifest().get("train") or run.manifest().get("score"):
            raise InputError("holds another run", where=str(run.path), hint="Choose another folder with --out")
        measure = self._read() if config.by != "generation" else self._scored(run)
        with run.locked():
            file = _File(run, plan, config, list(self._sides()))
            if config.by == "generation" and config.judge not in (None, "none"):
                self._ask_all(run)  # a judge that is served here needs the memory
            for number, variant in enumerate(self.todo):
                if not file.has(variant):
                    file.add(variant, *measure(number, variant))
            run.update_manifest(patch={"resolved": config.model_dump(mode="json"), "finished": now(), **facts()})
        return run.path

    def _sides(self) -> tuple[str, ...]:
        if self.config.by == "generation":
            return tuple(self.plan.specs)
        sides = sides_of(self.plan)[1]
        wanted = sides if self.plan.setting.behaviour else ("contrast",)
        if self.config.probes and set(self.config.probes) != set(wanted):
            what = f"without generating, {' and '.join(wanted)} can be read"
            raise InputError(what, where="--probes", hint="Leave it out, or --by")
        return sides

    def _read(self) -> Callable[[int, Variant], tuple[dict[str, Any], dict[str, Estimate]]]:
        """Measures without generating."""
        config, plan = self.config, self.plan
        where, count = models.placement(config.device, config.dtype), len(plan.all_asks)

        def measure(number: int, variant: Variant) -> tuple[dict[str, Any], dict[str, Estimate]]:
            assert plan.renderer is not None  # a model in process has a tokenizer
            model, patched = self.pairs.patched(variant, where, plan.renderer)
            read = partial(reply_logprobs, model, batch_size=config.batch_size, patch=patched)
            values = read_values(plan, read, counting(number * count, len(self.todo) * count, self.on_reply))
            return values, {side: mean_t(found.values()) for side, found in values.items()}

        return measure

    def _scored(self, run: Run) -> Callable[[int, Variant], tuple[dict[str, Any], dict[str, Estimate]]]:
        """Measures by scoring, each variant in a folder of its own."""

        def measure(number: int, variant: Variant) -> tuple[dict[str, Any], dict[str, Estimate]]:
            path = self._score(run, number, variant, judged=True)
            scores = read_json(path / "scores.json")
            split = self.config.split
            values = {probe: scores["values"][f"{probe}/{split}"] for probe in self.plan.specs}
            first = {p["probe"]: next(iter(p["measures"].values())) for p in scores["probes"] if p["split"] == split}
            return values, {probe: Estimate.model_validate(first[probe]) for probe in self.plan.specs}

        return measure

    def _ask_all(self, run: Run) -> None:
        for number, variant in enumerate(self.todo):
            self._score(run, number, variant, judged=False)
        self.pairs.drop()

    def _score(self, run: Run, number: int, variant: Variant, *, judged: bool) -> Path:
        count = len(self.plan.all_asks)

        def advance(done: int, _total: int) -> None:
            self.on_reply(number * count + done, len(self.todo) * count)

        settings = _settings(self.config, out=run.path / "variants" / slug(variant.label))
        return score(settings, arm=self.pairs.arm(variant), on_reply=advance, say=self.say, judged=judged)


class _File:
    """`sweep.json`: written anew after every variant, whole."""

    def __init__(self, run: Run, plan: ScorePlan, config: PatchConfig, sides: list[str]) -> None:
        self.path = run.path / FILE
        identity = sha256_of(plan.weights_id, config.initial or "", *(ask.key for ask in plan.all_asks))
        self.value: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "setting": plan.setting.name,
            "model": {"id": plan.name} | origin(plan.source),
            "what": config.what,
            "region": config.region,
            "into": config.into,
            "by": config.by if config.by == "generation" else sides_of(plan)[0],
            "split": config.split,
            "sides": sides,
            "identity": identity,
            "variants": [],
        }
        if not self.path.exists():
            return
        before = read_json(self.path)
        same = ("setting", "what", "region", "into", "by", "split", "sides", "identity")
        changed = [name for name in same if before.get(name) != self.value[name]]
        if changed:
            what = f"holds another sweep: {', '.join(changed)} differ"
            raise InputError(what, where=str(self.path), hint="Choose another folder with --out")
        self.value["variants"] = before["variants"]

    def has(self, variant: Variant) -> bool:
        return any(found["label"] == variant.label for found in self.value["variants"])

    def add(self, variant: Variant, values: dict[str, Any], estimates: dict[str, Estimate]) -> None:
        found = {
            "label": variant.label,
            "place": variant.place,
            "values": values,
            "estimates": {name: estimate.model_dump() for name, estimate in estimates.items()},
        }
        self.value["variants"].append(found)
        write_json(self.path, self.value | {"written": now(), "made_with": facts()})
