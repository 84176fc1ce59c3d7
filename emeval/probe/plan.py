"""What a scoring will be: model, template, behaviour, engine and every question rendered; nothing is written yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from emeval import models
from emeval.chat import Renderer, thinking
from emeval.config import ScoreConfig
from emeval.data.behaviours import Behaviour
from emeval.data.root import DataRoot, data_root
from emeval.data.settings import Setting, load_setting
from emeval.engine.choose import choose_engine
from emeval.engine.patch import Patch
from emeval.engine.patched import PatchedPrefix
from emeval.errors import InputError
from emeval.probe.kinds import KINDS, UNASKED, find_questions
from emeval.probe.run import Ask, follow_ups, plan_asks
from emeval.probe.spec import ProbeSpec, load_probe
from emeval.store import sha256_of
from emeval.types import Completion, Message, Prompt, Question, Sampling


@dataclass(frozen=True)
class Arm:
    """An intervention: on the model that answers, or on what it is asked."""

    label: str
    """How tables call it, for instance 'prefix from the initial model'."""
    patched: Callable[[models.Placement, Renderer], tuple[Any, Patch]] | None = None
    """Gives the loaded model that answers, and what is put into it."""
    served: Callable[[Renderer], tuple[models.ModelSource, PatchedPrefix | None]] | None = None
    """Gives the model that vLLM is to serve, and whose prefix is put into it; None where vLLM cannot."""
    reworded: Callable[[Question, int], tuple[Message, ...]] | None = None
    """What is asked in a question's place, by trial; judges see the question itself."""
    reencoded: Callable[[Prompt, Question, int], Prompt] | None = None
    """The token ids that are asked in place of a prompt's own, by trial."""
    intervenes: bool = True
    """Whether `patched` puts something into the model; without, it only keeps it loaded."""
    release: Callable[[], None] | None = None
    """Lets go of the loaded model once all is asked, before a judge is served."""
    trials: int | None = None
    """How often each question is asked, each time otherwise; None leaves that to the command."""
    key: str = ""
    """What else tells two arms of one label apart: settings, another model's weights."""


@dataclass(frozen=True)
class ScorePlan:
    """Everything decided before an engine is opened."""

    config: ScoreConfig
    name: str
    source: models.ModelSource | None
    """None for a server that takes only chat messages: what it renders and which weights it holds we cannot see."""
    tokenizer: Any
    renderer: Renderer | None
    root: DataRoot
    setting: Setting
    engine: str
    specs: dict[str, ProbeSpec]
    named: dict[str, str]
    """By probe, how it was named: a name, or NAME=FILE."""
    asks: dict[str, list[Ask]]
    """By probe, what is asked first; `asks_with` adds the later turns of a conversation as they can be rendered."""
    weights_id: str
    arm: Arm | None

    @property
    def behaviour(self) -> Behaviour:
        """The behaviour that is looked for; InputError where the setting is a domain."""
        return self.setting.needed_behaviour("this")

    @property
    def all_asks(self) -> list[Ask]:
        """Of all probes, in order."""
        return [ask for asks in self.asks.values() for ask in asks]

    def asks_with(self, probe: str, stored: Mapping[tuple[str, str], Completion]) -> list[list[Ask]]:
        """A probe's asks, turn by turn: those of a later turn whose earlier replies are all in `stored`."""
        rounds = [self.asks[probe]]
        while later := follow_ups(rounds[-1], stored, self.renderer, self.weights_id, self.arm):
            rounds.append(later)
        return rounds

    def expected(self, probe: str) -> int:
        """How many replies the probe asks for, later turns included."""
        return sum(1 + len(ask.question.turns) for ask in self.asks[probe])

    def questions(self, probe: str) -> dict[str, Question]:
        """The probe's questions by id."""
        return {ask.question.id: ask.question for ask in self.asks[probe]}

    @property
    def identity(self) -> dict[str, Any]:
        """What all scores of one folder share."""
        where = {"engine": self.engine, "dtype": self.config.dtype, "model_url": self.config.model_url}
        return {
            "weights_id": self.weights_id,
            "setting": self.setting.name,
            "template": self.renderer.fingerprint if self.renderer else None,
            "arm": self.arm.label if self.arm else None,
            "sampling": {k: getattr(self.config, k) for k in ("max_new_tokens", "temperature", "top_p", "seed")},
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
    name = config.setting or (source.setting if source else None)
    if name is None:
        raise InputError(
            "which behaviour or domain to look for is not known", where="--setting", hint="Give --setting NAME"
        )
    setting = load_setting(root, name)
    tokenizer = models.load_tokenizer(source) if source else None
    renderer = _renderer(tokenizer, source, config) if source else None
    if source and renderer:
        _check_template(source, renderer, config)
    name = source.name if source else config.model_name or config.model
    weights_id = source.weights_id() if source else sha256_of("endpoint", str(config.model_url), name)
    if arm is not None:
        weights_id = sha256_of(weights_id, arm.label, *([arm.key] if arm.key else []))
    given = [(load_probe(root, probe), probe) for probe in config.probes or default_probes(setting)]
    specs = {spec.name: spec for spec, _ in given}
    named = {spec.name: probe for spec, probe in given}
    asks = {probe: _asks(spec, root, setting, config, renderer, weights_id, arm) for probe, spec in specs.items()}
    return ScorePlan(
        config, name, source, tokenizer, renderer, root, setting, engine, specs, named, asks, weights_id, arm
    )


def _renderer(tokenizer: Any, source: models.ModelSource, config: ScoreConfig) -> Renderer:
    """As the model was trained, unless the command says otherwise."""
    system = source.system if config.system is None else config.system
    return Renderer(tokenizer, system, **thinking(source.thinking if config.thinking is None else config.thinking))


def default_probes(setting: Setting) -> tuple[str, ...]:
    """What is asked where nobody says: what the setting can be scored on without a judge model."""
    return ("on-topic", "off-topic") if setting.behaviour else ("contrast",)


def _asks(
    spec: ProbeSpec,
    root: DataRoot,
    setting: Setting,
    config: ScoreConfig,
    renderer: Renderer | None,
    weights_id: str,
    arm: Arm | None,
) -> list[Ask]:
    found = find_questions(spec, root, setting, config.split)
    if spec.kind in UNASKED:
        if renderer is None:
            what = f"the probe '{spec.name}' needs a server that takes token ids"
            raise InputError(what, where="--model-api chat", hint="Leave it out, or use --model-api completions")
        groups = [[q for q in found if q.category == group] for group in dict.fromkeys(q.category for q in found)]
        kept = [q for group in groups for q in group[: config.limit]]
        trials = arm.trials if arm and arm.trials else 1
        nothing = Sampling(max_new_tokens=1)
        return plan_asks(kept, renderer, weights_id, lambda _: (nothing, trials), pairs=True, arm=arm)
    found = found[: config.limit]
    behaviour = setting.behaviour if spec.kind == "behaviour" else None
    own = behaviour.max_new_tokens if behaviour else import_module(KINDS[spec.kind]).MAX_NEW_TOKENS

    def drawn(question: Question) -> tuple[Sampling, int]:
        # The command's own options win over a published set's, where they are given at all.
        asked = config.model_fields_set
        own_temperature = None if "temperature" in asked else question.temperature
        own_samples = None if "samples" in asked else question.samples
        temperature = config.temperature if own_temperature is None else own_temperature
        samples = config.samples if own_samples is None else own_samples
        sampling = Sampling(
            max_new_tokens=config.max_new_tokens or own, temperature=temperature, top_p=config.top_p, seed=config.seed
        )
        if arm and arm.trials:
            return sampling, arm.trials  # greedy or not: no two of them are asked the same
        if samples > 1 and temperature == 0:
            what = f"asks for {samples} samples at temperature 0, where all are the same"
            raise InputError(what, where=question.where or spec.where, hint="Give --temperature, or --samples 1")
        return sampling, samples

    return plan_asks(found, renderer, weights_id, drawn, arm=arm)


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
