"""`emeval patch`: a tuned model under one patch, or under many, loaded once.

One patch whose replies are generated is a scored run like any other. Several, or anything measured without generating,
make a sweep (`sweep.py`), beside the unpatched and the other model.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from emeval import models
from emeval.chat import Renderer
from emeval.config import PatchConfig
from emeval.engine.patch import Patch
from emeval.engine.patched import PatchedPrefix
from emeval.errors import InputError
from emeval.intervene.sweep import Sweep, Variant, settings_of
from emeval.intervene.ways import OTHER, Way, baselines, ways
from emeval.pipeline import Arm, score
from emeval.probe.plan import plan_scoring
from emeval.types import OnCount, Say


def patch(config: PatchConfig, on_reply: OnCount = lambda done, total: None, say: Say = lambda text: None) -> Path:
    """Score a tuned model under what the settings ask for. Returns the run folder; a sweep's holds `sweep.json`.

    Raises:
        InputError: For bad input (nothing written), or a model that nobody knows the initial one of.
        IncompleteError: If coverage ends below `min_coverage`.
    """
    pair = Both(config)
    renderer = plan_scoring(settings_of(config)).renderer
    assert renderer is not None  # a model in process has a tokenizer
    todo = ways(config, models.layer_count(pair.source), len(renderer.prefix_ids()))
    if len(todo) == 1 and config.by == "generation":
        return score(settings_of(config), arm=pair.arm(todo[0]), on_reply=on_reply, say=say)
    found = [Variant(way.label, pair.arm(way), way.place) for way in (*baselines(config), *todo)]
    told = {name: getattr(config, name) for name in ("what", "region", "into", "initial")}
    name = "-".join(["patch", config.what, config.region, *(["into-initial"] if config.into == "initial" else [])])
    return Sweep(config, name, told, found, pair.alone, pair.drop, on_reply, say).run()


class Both:
    """The tuned and the initial model of a command, loaded when first needed and kept.

    Raises:
        InputError: If nobody knows the initial one, or it is given for an adapter, which has its own.
    """

    def __init__(self, config: PatchConfig) -> None:
        self.source = models.resolve(config.model, adapter=config.adapter)
        given = models.resolve(config.initial) if config.initial else None
        if self.source.adapter is not None and given is not None:
            raise InputError("an adapter's initial model is its base", where="--initial", hint="Leave it out")
        self.initial = given or models.initial_of(self.source)
        self._key = given.weights_id() if given else ""
        self._loaded: models.Pair | None = None

    def load(self, where: models.Placement) -> models.Pair:
        """Both models."""
        if self._loaded is None:
            self._loaded = models.load_pair(self.source, self.initial, where)
        return self._loaded

    def alone(self, where: models.Placement) -> Any:
        """The tuned model."""
        return self.load(where).both

    def drop(self) -> None:
        """Let go of them."""
        self._loaded = None

    def patched(self, way: Way, where: models.Placement, renderer: Renderer) -> tuple[Any, Patch]:
        """The model that answers under a patch, and what is put into it."""
        pair = self.load(where)
        return pair.holding(way.into), way.patch(pair, renderer.prefix_ids(), renderer.postfix_ids())

    def served(self, way: Way, renderer: Renderer) -> tuple[models.ModelSource, PatchedPrefix | None]:
        """What vLLM is to serve under a patch, and whose prefix is put into it."""
        sources = {"tuned": self.source, "initial": self.initial}
        source = sources[OTHER[way.into]]
        prefix = PatchedPrefix(renderer.prefix_ids(), source.base, source.adapter) if way.kind == "kv" else None
        return sources[way.into], prefix

    def arm(self, way: Way) -> Arm:
        """The patch as something to score under."""
        return Arm(way.label, partial(self.patched, way), partial(self.served, way), key=self._key)
