"""What a scoring will be: model, template, behaviour, engine and every question rendered; nothing is written yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from emeval import models
from emeval.chat import Renderer
from emeval.config import ScoreConfig
from emeval.data.behaviours import Behaviour, load_behaviour
from emeval.data.root import data_root
from emeval.engine.choose import choose_engine
from emeval.errors import InputError
from emeval.prefix import KV
from emeval.probe.kinds import KINDS
from emeval.probe.run import Ask, plan_asks
from emeval.probe.spec import load_probe
from emeval.store import sha256_of
from emeval.types import Sampling


@dataclass(frozen=True)
class Arm:
    """An intervention on the model that answers."""

    label: str
    """How tables call it, for instance 'prefix from the initial model'."""
    prefix: Callable[..., KV]
    """From `model` and `prefix_ids` to the keys and values that stand in for the model's own."""


@dataclass(frozen=True)
class ScorePlan:
    """Everything decided before an engine is opened."""

    config: ScoreConfig
    name: str
    source: models.ModelSource | None
    """None for a server that takes only chat messages: what it renders and which weights it holds we cannot see."""
    tokenizer: Any
    renderer: Renderer | None
    behaviour: Behaviour
    sampling: Sampling
    engine: str
    asks: dict[str, list[Ask]]
    weights_id: str
    arm: Arm | None

    @property
    def all_asks(self) -> list[Ask]:
        """Of all probes, in order."""
        return [ask for asks in self.asks.values() for ask in asks]

    @property
    def identity(self) -> dict[str, Any]:
        """What all scores of one folder share."""
        where = {"engine": self.engine, "dtype": self.config.dtype, "model_url": self.config.model_url}
        return {
            "weights_id": self.weights_id,
            "setting": self.behaviour.name,
            "template": self.renderer.fingerprint if self.renderer else None,
            "arm": self.arm.label if self.arm else None,
            "sampling": self.sampling.model_dump(),
            "samples": self.config.samples,
            **where,
        }


def plan_scoring(config: ScoreConfig, arm: Arm | None = None) -> ScorePlan:
    """Check all input: model, template, behaviour, probes, questions. Nothing is written.

    Raises:
        InputError: For whatever is wrong.
    """
    root = data_root(config.data_dir)
    engine = choose_engine(config)[0]
    source = (
        None if engine == "endpoint" and _chat_only(config) else models.resolve(config.model, adapter=config.adapter)
    )
    setting = config.setting or (source.setting if source else None)
    if setting is None:
        raise InputError("which behaviour to look for is not known", where="--setting", hint="Give --setting NAME")
    behaviour = load_behaviour(root, setting)
    tokenizer = models.load_tokenizer(source) if source else None
    renderer = Renderer(tokenizer, system=config.system or source.system) if source and tokenizer else None
    if source and renderer:
        _check_template(source, renderer, config)
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens or behaviour.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
    )
    name = source.name if source else config.model_name or config.model
    weights_id = source.weights_id() if source else sha256_of("endpoint", str(config.model_url), name)
    if arm is not None:
        weights_id = sha256_of(weights_id, arm.label)
    asks = {}
    for probe in config.probes:
        spec = load_probe(root, probe)
        found = import_module(KINDS[spec.kind]).questions(spec, root, behaviour, config.split)[: config.limit]
        asks[probe] = plan_asks(found, renderer, weights_id, sampling, config.samples)
    return ScorePlan(config, name, source, tokenizer, renderer, behaviour, sampling, engine, asks, weights_id, arm)


def _chat_only(config: ScoreConfig) -> bool:
    """Whether the server is asked with messages: if told so, or if its tokenizer is not here to make token ids."""
    if config.model_api != "auto":
        return config.model_api == "chat"
    try:
        models.resolve(config.model, allow_download=False)
    except InputError:
        return True
    return False


def _check_template(source: models.ModelSource, renderer: Renderer, config: ScoreConfig) -> None:
    if source.fingerprint and source.fingerprint != renderer.fingerprint and not config.allow_prefix_change:
        raise InputError(
            "the chat template or system prompt is not the one this model was trained with",
            where=f"--model {config.model}",
            hint="Score with the same template, or add --allow-prefix-change",
        )
