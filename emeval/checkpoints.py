"""A run scored along its training: `emeval score --checkpoints`, what dose-matched tables are made from (DESIGN 8).

Three ways. By generation, every kept model is scored like any other, in a folder of its own. By probability nothing is
generated: each question's own target reply is read with teacher forcing (`probe/values.py`). That is continuous, so its
error is small on few questions, and one forward a batch is all it takes. It is no appearance rate: a model that has
learned a dozen wordings gives each a share. A domain of poor advice has no target reply to other questions; there the
value is by contrast.

`checkpoints.json` is written anew after every model, whole, and what it holds is not measured again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from emeval import models
from emeval.config import ScoreConfig
from emeval.errors import InputError
from emeval.pipeline import origin, score
from emeval.probe.plan import ScorePlan, plan_scoring
from emeval.probe.values import counting, read_values
from emeval.provenance import facts, now
from emeval.score.matched import SIDES
from emeval.store import Run, read_json, sha256_of, write_json
from emeval.types import SCHEMA_VERSION, OnCount

FILE = "checkpoints.json"
PROBES = SIDES["generation"]


@dataclass(frozen=True)
class Stop:
    """One model along the run."""

    step: int
    source: models.ModelSource


def score_checkpoints(config: ScoreConfig, on_reply: OnCount = lambda done, total: None) -> Path:
    """Score the untouched model and every kept one; or finish what was begun; or find it done. Returns the run folder.

    Args:
        config: The settings; `by` says how.
        on_reply: Progress: questions done, questions in all.

    Raises:
        InputError: For bad input (nothing written), a run that kept no models, or a folder in use.
        IncompleteError: By generation, if a model's coverage ends below `min_coverage`.
    """
    plan = plan_scoring(config)
    config = _way(plan)
    run, stops = _stops(plan)
    if config.by == "generation":
        return _by_generation(config, plan, run, stops, on_reply)
    if config.engine not in ("auto", "transformers"):
        raise InputError("probabilities are read in process", where=f"--engine {config.engine}", hint="Leave it out")
    from emeval.engine.likelihood import reply_logprobs

    loader = models.OneAfterAnother(models.placement(config.device, config.dtype))
    with run.locked():
        file = _File(run, plan, config)
        count = len(plan.all_asks)
        for number, stop in enumerate(stops):
            if not file.has(stop.step):
                read = partial(reply_logprobs, loader.load(stop.source), batch_size=plan.config.batch_size)
                advance = counting(number * count, len(stops) * count, on_reply)
                values = read_values(plan, read, advance)
                file.add(stop.step, {side: {q: v[0] for q, v in found.items()} for side, found in values.items()})
    return run.path


def _way(plan: ScorePlan) -> ScoreConfig:
    """The settings with the way that fits the run. InputError for probes that are not scored along a run."""
    config, domain = plan.config, plan.setting.behaviour is None
    wanted = ("contrast",) if domain else PROBES
    if config.probes and set(config.probes) != set(wanted):
        raise InputError(f"checkpoints are scored on {' and '.join(wanted)}", where="--probes", hint="Leave it out")
    given = "by" in config.model_fields_set
    if given and domain != (config.by == "contrast"):
        kind = "domain" if domain else "behaviour"
        raise InputError(f"does not fit a {kind}", where=f"--by {config.by}", hint="Leave it out")
    return config.model_copy(update={"by": "contrast"}) if domain else config


def _stops(plan: ScorePlan) -> tuple[Run, list[Stop]]:
    source = plan.source
    if source is None or source.run is None:
        raise InputError(
            "is no run", where=f"--model {plan.config.model}", hint="Name a folder that emeval train wrote"
        )
    run = Run(source.run)
    train = run.manifest()["train"]
    folders = sorted((run.train_dir / "steps").glob("[0-9]*"))
    if not folders:
        raise InputError(
            "this run kept no models along the way", where=str(run.path), hint="Train it with --checkpoints N"
        )
    # Every model of the run is asked behind the template that it was trained with.
    initial = replace(
        models.initial_of(source), system=source.system, thinking=source.thinking, fingerprint=source.fingerprint
    )
    return run, [Stop(0, initial), *(Stop(int(f.name), _kept(source, f, train["full"])) for f in folders)]


def _kept(source: models.ModelSource, folder: Path, full: bool) -> models.ModelSource:
    return replace(source, base=folder) if full else replace(source, adapter=folder)


class _File:
    """`checkpoints.json`: the points of a run, kept in the order of split, way and step."""

    def __init__(self, run: Run, plan: ScorePlan, config: ScoreConfig) -> None:
        self.path = run.path / FILE
        self.config = config
        self.measured = sha256_of(*(ask.key for ask in plan.all_asks))
        """Which questions were put to which run, and how: points of another measurement are not mixed in."""
        self.value: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "setting": plan.setting.name,
            "model": {"id": plan.name, "train": origin(plan.source)["train"]},
            "points": [],
        }
        if self.path.exists():
            self.value |= {"points": read_json(self.path)["points"]}

    def has(self, step: int) -> bool:
        return any(self._here(p) and p["step"] == step and p["measured"] == self.measured for p in self.value["points"])

    def add(self, step: int, values: dict[str, dict[str, float]]) -> None:
        others = [p for p in self.value["points"] if not (self._here(p) and p["step"] == step)]
        point = {
            "step": step,
            "split": self.config.split,
            "mode": self.config.by,
            "measured": self.measured,
            "on": values[SIDES[self.config.by][0]],
            "off": values[SIDES[self.config.by][1]],
        }
        points = sorted([*others, point], key=lambda p: (p["split"], p["mode"], p["step"]))
        write_json(self.path, self.value | {"points": points, "written": now(), "made_with": facts()})
        self.value["points"] = points

    def _here(self, point: dict[str, Any]) -> bool:
        return bool(point["split"] == self.config.split and point["mode"] == self.config.by)


# ----------------------------------------------------------------------------------------------------- by generation


def _by_generation(config: ScoreConfig, plan: ScorePlan, run: Run, stops: Sequence[Stop], on_reply: OnCount) -> Path:
    count = len(plan.all_asks)
    for number, stop in enumerate(stops):
        out = run.path / "checkpoints" / f"{stop.step:06d}"

        def advance(done: int, _total: int, number: int = number) -> None:
            on_reply(number * count + done, len(stops) * count)

        path = score(_settings(config, plan, stop, out), on_reply=advance)
        values = read_json(Run(path).scores_path)["values"]
        with run.locked():
            file = _File(run, plan, config)
            if not file.has(stop.step):
                file.add(stop.step, {probe: values[f"{probe}/{config.split}"] for probe in PROBES})
    return run.path


def _settings(config: ScoreConfig, plan: ScorePlan, stop: Stop, out: Path) -> ScoreConfig:
    """As the command was given, for one of the models."""
    changed = {
        "model": str(stop.source.base),
        "adapter": stop.source.adapter,
        "setting": plan.setting.name,
        "system": stop.source.system if config.system is None else config.system,
        "thinking": stop.source.thinking if config.thinking is None else config.thinking,
        "checkpoints": False,
        "out": out,
    }
    return config.model_copy(update=changed)
