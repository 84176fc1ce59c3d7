"""One model scored: engine -> probe -> judge -> score. What `emeval score`, `emeval patch` and later the grid call.

Everything is checked before a model is loaded or a folder is made; everything that was stored is used again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from emeval import models
from emeval.config import ScoreConfig
from emeval.engine.choose import Opening, check_engine, open_engine
from emeval.errors import IncompleteError, InputError
from emeval.judge.run import RuleJudge, judge_all
from emeval.probe.plan import Arm, ScorePlan, plan_scoring
from emeval.probe.run import ask_all, missing, stored_completions
from emeval.provenance import facts, now
from emeval.score.stats import rate
from emeval.store import Jsonl, Run, read_json, slug, write_json
from emeval.types import SCHEMA_VERSION, Completion, Judgement, ProbeScore

__all__ = ["Arm", "OnReply", "origin", "score"]

OnReply = Callable[[int, int], None]
"""Called with: replies stored, replies asked for."""


def score(config: ScoreConfig, *, arm: Arm | None = None, on_reply: OnReply | None = None) -> Path:
    """Ask, judge and score; or finish what was begun; or find it done. Returns the run folder.

    Args:
        config: The settings.
        arm: An intervention to score the model under.
        on_reply: Progress.

    Raises:
        InputError: For bad input (nothing written), a folder in use, or one that holds other scores.
        IncompleteError: If coverage ends below `min_coverage`; what could be had is stored and scored.
    """
    plan = plan_scoring(config, arm)
    run = Run(_run_path(plan))
    if not _all_stored(plan, run):
        check_engine(plan.engine, config)
    with run.locked():
        _check_same(run, plan)
        run.update_manifest(score=_manifest_section(plan))
        shortfall = _ask(plan, run, on_reply)
        scores = _score(plan, run)
    _check_coverage(scores, config.min_coverage, run, shortfall)
    return run.path


# ---------------------------------------------------------------------------------------------------------- the folder


def _run_path(plan: ScorePlan) -> Path:
    if plan.config.out:
        return plan.config.out
    if plan.source and plan.source.run is not None and plan.arm is None:
        return plan.source.run
    parts = [plan.name, plan.behaviour.name, plan.arm.label if plan.arm else None]
    return Path("results") / "runs" / slug("-".join(p for p in parts if p))


def _check_same(run: Run, plan: ScorePlan) -> None:
    manifest = run.manifest()
    train = manifest.get("train")
    own = plan.source.run if plan.source else None
    if train and (own is None or run.path.resolve() != own.resolve()):
        raise InputError("this folder holds another model's training", where=str(run.path), hint="Choose another --out")
    before = (manifest.get("score") or {}).get("identity")
    if before and before != plan.identity:
        changed = sorted(k for k in plan.identity if before.get(k) != plan.identity[k])
        raise InputError(
            f"this folder holds scores made differently: {', '.join(changed)} changed",
            where=str(run.path),
            hint="Choose another folder with --out",
        )


def _manifest_section(plan: ScorePlan) -> dict[str, Any]:
    return {
        "model": plan.name,
        "base": str(plan.source.base) if plan.source else None,
        "setting": plan.behaviour.name,
        "identity": plan.identity,
        "resolved": plan.config.model_dump(mode="json"),
        "judge": RuleJudge(plan.behaviour).id,
        "template": plan.renderer.describe() if plan.renderer else None,
        "started": now(),
        **facts(),
    }


# -------------------------------------------------------------------------------------------------------------- asking


def _all_stored(plan: ScorePlan, run: Run) -> bool:
    return not missing(plan.all_asks, stored_completions(Jsonl(run.completions_path, Completion)))


def _ask(plan: ScorePlan, run: Run, on_reply: OnReply | None) -> IncompleteError | None:
    """Put what is still missing. Returns the engine's complaint if some replies could not be had."""
    file = Jsonl(run.completions_path, Completion)
    stored = stored_completions(file)
    asks = plan.all_asks
    count = len(asks) - len(missing(asks, stored))
    if count == len(asks):
        return None

    def replied() -> None:
        nonlocal count
        count += 1
        if on_reply:
            on_reply(count, len(asks))

    if on_reply:
        on_reply(count, len(asks))
    prefix = partial(plan.arm.prefix, prefix_ids=plan.renderer.prefix_ids()) if plan.arm and plan.renderer else None
    opening = Opening(plan.config, plan.source, plan.tokenizer, plan.renderer, run.path, prefix)
    engine = open_engine(plan.engine, opening)
    try:
        # A probe at a time, so that its batch plan does not depend on which other probes were named.
        for probe in plan.asks.values():
            if missing(probe, stored):
                ask_all(probe, engine, plan.sampling, file, stored, replied)
    except IncompleteError as e:
        return e
    finally:
        engine.close()
        file.close()
    return None


# ------------------------------------------------------------------------------------------------------------- scoring


def _score(plan: ScorePlan, run: Run) -> list[ProbeScore]:
    stored = stored_completions(Jsonl(run.completions_path, Completion))
    judge = RuleJudge(plan.behaviour)
    file = Jsonl(run.judgements_path, Judgement)
    scores, flags = [], {}
    try:
        for name, asks in plan.asks.items():
            had = [stored[name, a.key] for a in asks if (name, a.key) in stored]
            judgements = judge_all(had, judge, file)
            scores.append(_probe_score(plan, name, len(asks), judgements))
            flags[f"{name}/{plan.config.split}"] = _by_question(judgements)
    finally:
        file.close()
    _write_scores(plan, run, scores, flags)
    return scores


def _probe_score(plan: ScorePlan, name: str, expected: int, judgements: Sequence[Judgement]) -> ProbeScore:
    # Questions with a system prompt of their own are counted, but they do not answer for the trained prefix.
    scored = [j for j in judgements if j.value is not None and not j.foreign_prefix]
    return ProbeScore(
        probe=name,
        split=plan.config.split,
        setting=plan.behaviour.name,
        judge=RuleJudge(plan.behaviour).id,
        expected=expected,
        outcomes=dict(Counter(j.outcome for j in judgements)),
        truncated=sum(j.truncated for j in judgements),
        foreign_prefix=sum(j.foreign_prefix for j in judgements),
        rate=rate([j.value == 1.0 for j in scored], [j.question_id for j in scored]),
        details=dict(Counter(j.detail or "" for j in judgements)),
    )


def _by_question(judgements: Sequence[Judgement]) -> dict[str, float]:
    """The share of a question's replies that show the behaviour: 0 or 1 where it was asked once."""
    values: dict[str, list[float]] = {}
    for j in judgements:
        if j.value is not None and not j.foreign_prefix:
            values.setdefault(j.question_id, []).append(j.value)
    return {question: sum(v) / len(v) for question, v in values.items()}


def origin(source: models.ModelSource | None) -> dict[str, Any]:
    """Base, adapter, and how it was trained: carried along, since scores may lie in another folder than the run."""
    if source is None:
        return {}
    train = Run(source.run).manifest()["train"] if source.run else None
    kept = ("method", "setting", "model", "lambda", "region", "full", "steps", "seed")
    return {
        "base": source.base.name,
        "adapter": source.adapter.name if source.adapter else None,
        "train": {k: train.get(k) for k in kept} if train else None,
    }


def _write_scores(plan: ScorePlan, run: Run, scores: Sequence[ProbeScore], flags: dict[str, dict[str, float]]) -> None:
    before = read_json(run.scores_path) if run.scores_path.exists() else {}
    new = {(s.probe, s.split) for s in scores}
    kept = [p for p in before.get("probes", []) if (p["probe"], p["split"]) not in new]
    write_json(
        run.scores_path,
        {
            "schema_version": SCHEMA_VERSION,
            "setting": plan.behaviour.name,
            "model": {"id": plan.name, "weights_id": plan.weights_id} | origin(plan.source),
            "engine": plan.engine,
            "token_prompts": plan.renderer is not None,
            "arm": plan.arm.label if plan.arm else None,
            "probes": [*kept, *(s.model_dump(mode="json") for s in scores)],
            "flags": before.get("flags", {}) | flags,
        },
    )


def _check_coverage(scores: Sequence[ProbeScore], floor: float, run: Run, shortfall: IncompleteError | None) -> None:
    thin = [s for s in scores if s.coverage < floor]
    if thin:
        counts = ", ".join(f"{s.probe} {s.coverage:.0%} of {s.expected}" for s in thin)
        reason = f" ({shortfall.what})" if shortfall else ""
        raise IncompleteError(
            f"coverage is below {floor:.0%}: {counts}{reason}",
            where=str(run.path),
            hint="Run the same command again: only what is missing is asked",
        )
