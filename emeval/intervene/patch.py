"""`emeval patch`: a tuned model under one patch, or under many, loaded once.

One patch whose replies are generated is a scored run like any other. Several, or anything measured without generating,
make a sweep (`sweep.py`), beside the unpatched and the other model.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from emeval import models
from emeval.chat import Renderer
from emeval.config import PatchConfig
from emeval.engine.patch import Patch
from emeval.engine.patched import PatchedPrefix
from emeval.errors import InputError
from emeval.intervene.asked import planned, settings_of
from emeval.intervene.sweep import Sweep, Variant
from emeval.intervene.ways import Way, baselines, ways
from emeval.models import OTHER
from emeval.pipeline import Arm, score
from emeval.probe.plan import ScorePlan
from emeval.table.sweeps import FILE
from emeval.types import OnCount, Say


def patch(config: PatchConfig, on_reply: OnCount = lambda done, total: None, say: Say = lambda text: None) -> Path:
    """Score a tuned model under what the settings ask for. Returns the run folder; a sweep's holds `sweep.json`.

    Raises:
        InputError: For bad input (nothing written), or a model that nobody knows the initial one of.
        IncompleteError: If coverage ends below `min_coverage`.
    """
    pair = Both(config)
    config, plan, generates = planned(config)
    assert plan.renderer is not None  # a model in process has a tokenizer
    todo = ways(config, models.layer_count(pair.source), len(plan.renderer.prefix_ids()))
    if "postfix" in config.region:
        _check_postfix(plan)
    if len(todo) == 1 and generates:
        if config.out and (config.out / FILE).exists():
            raise InputError("holds a sweep", where=str(config.out), hint="Choose another folder with --out")
        arm = replace(pair.arm(todo[0]), release=pair.drop)
        return score(settings_of(config), arm=arm, on_reply=on_reply, say=say)
    found = [Variant(way.label, pair.arm(way), way.place, way.family, way.axis) for way in (*baselines(config), *todo)]
    told = {name: getattr(config, name) for name in ("what", "region", "into", "layers", "tokens", "part")}
    told |= {"initial": pair.initial.weights_id()}
    parts = [config.region, config.part, f"layers {config.layers}", f"tokens {config.tokens}"]
    name = [p for p in parts if p not in ("both", "layers all", "tokens all")]
    name = ["patch", config.what, *name, *(["into-initial"] if config.into == "initial" else [])]
    return Sweep(config, plan, generates, "-".join(name), told, found, pair.drop, on_reply, say).run()


def _check_postfix(plan: ScorePlan) -> None:
    """InputError for a prompt that does not end as the others do: its postfix could not be exchanged."""
    assert plan.renderer is not None  # asked before
    for ask in plan.all_asks:
        if not ask.foreign_prefix and ask.prompt.ids[ask.prompt.postfix.start :] != plan.renderer.postfix_ids():
            what = "what follows this question is not what follows the others"
            hint = "Its text merges with the template (trailing white space?): trim it"
            raise InputError(what, where=ask.question.where or ask.question.id, hint=hint)


class Both:
    """The tuned and the initial model of a command, loaded when first needed and kept.

    Raises:
        InputError: If nobody knows the initial one, or what is given for it cannot be.
    """

    def __init__(self, config: PatchConfig) -> None:
        self.source = models.resolve(config.model, adapter=config.adapter)
        self.initial = models.initial_of(self.source, config.initial)
        self._key = self.initial.weights_id() if config.initial else ""
        self._loaded: models.Pair | None = None

    def load(self, where: models.Placement) -> models.Pair:
        """Both models."""
        if self._loaded is None:
            self._loaded = models.load_pair(self.source, self.initial, where)
        return self._loaded

    def drop(self) -> None:
        """Let go of them, and of the memory they took on a GPU."""
        self._loaded = None
        models.free_memory()

    def patched(self, way: Way, where: models.Placement, renderer: Renderer) -> tuple[Any, Patch]:
        """The model that answers under a patch, and what is put into it."""
        pair = self.load(where)
        return pair.holding(way.into), way.patch(pair, renderer.prefix_ids(), renderer.postfix_ids())

    def served(self, way: Way, renderer: Renderer) -> tuple[models.ModelSource, PatchedPrefix | None]:
        """What vLLM is to serve under a patch of the whole prefix or none, and whose prefix is put into it."""
        sources = {"tuned": self.source, "initial": self.initial}
        source = sources[OTHER[way.into]]
        prefix = PatchedPrefix(renderer.prefix_ids(), source.base, source.adapter) if way.kind == "kv" else None
        return sources[way.into], prefix

    def arm(self, way: Way) -> Arm:
        """The patch as something to score under."""
        served = partial(self.served, way) if way.whole else None
        return Arm(way.label, partial(self.patched, way), served, key=self._key)
