"""What a causal command asks, and how it is measured: by replies, or without generating any."""

from __future__ import annotations

from typing import Any, TypeVar

from emeval.config import CauseConfig, ScoreConfig
from emeval.errors import InputError
from emeval.probe.kinds import UNASKED
from emeval.probe.plan import ScorePlan, plan_scoring
from emeval.probe.values import sides_of

C = TypeVar("C", bound=CauseConfig)


def settings_of(config: CauseConfig, **changed: Any) -> ScoreConfig:
    """As the command was given, for one scoring."""
    given = set(ScoreConfig.model_fields) & config.model_fields_set | {"engine", "device"}
    return ScoreConfig(**config.model_dump(include=given) | {"by": "probability"} | changed)


def planned(config: C) -> tuple[C, ScorePlan, bool]:
    """The settings, what is asked of the model left alone, and whether replies are made.

    What is only read is read in process, whatever engine would answer otherwise.

    Raises:
        InputError: As `plan_scoring`; also a way that does not fit the setting, the probes or the engine.
    """
    plan = plan_scoring(settings_of(config))
    if _generates(config, plan):
        return config, plan, True
    if plan.engine != "transformers":
        if config.engine != "auto" or config.model_url:
            what = f"{' and '.join(plan.specs)} are read in process"
            raise InputError(what, where=f"--engine {plan.engine}", hint="Leave --engine and --model-url out")
        config = config.model_copy(update={"engine": "transformers"})
        plan = plan_scoring(settings_of(config))
    return config, plan, False


def _generates(config: CauseConfig, plan: ScorePlan) -> bool:
    given, (way, sides) = config.by, sides_of(plan)
    read = [name for name, spec in plan.specs.items() if spec.kind in UNASKED]
    # A domain's default is read, and nobody has to say so; beside generated probes it cannot be.
    if read and given == "generation" and ("by" in config.model_fields_set or len(read) < len(plan.specs)):
        what = f"'{read[0]}' is read, not generated"
        raise InputError(what, where="--probes", hint=f"Ask it alone, with --by {way}")
    if given == "generation" and not read:
        return True
    if given not in ("generation", way):
        kind = "behaviour" if way == "probability" else "domain"
        raise InputError(f"does not fit a {kind}", where=f"--by {given}", hint=f"Use --by {way}")
    wanted = sides if way == "probability" else ("contrast",)
    if set(plan.specs) != set(wanted):
        what = f"without generating, {' and '.join(wanted)} can be read"
        raise InputError(what, where="--probes", hint="Leave it out, or --by")
    return False
