"""One model scored: engine -> probe -> judge -> score. What `emeval score`, `emeval patch` and later the grid call.

Everything is checked before a model is loaded or a folder is made; everything that was stored is used again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from emeval import models
from emeval.config import JudgeConfig, ScoreConfig
from emeval.data.root import DataRoot, data_root
from emeval.data.settings import Setting, load_setting
from emeval.engine.choose import check_engine
from emeval.errors import IncompleteError, InputError, unknown
from emeval.judge.cost import Bill, bill
from emeval.judge.panel import PROMPT_OF, Panel
from emeval.judge.run import RuleJudge
from emeval.judge.tally import Probed, Scored, score_all, score_pairs
from emeval.probe.kinds import find_questions
from emeval.probe.likelihood import stored_likelihoods
from emeval.probe.plan import Arm, ScorePlan, plan_scoring
from emeval.probe.run import stored_completions
from emeval.probe.session import all_stored, ask, asked, completions_of, likelihoods_of, longest
from emeval.probe.spec import load_probe
from emeval.provenance import facts, now
from emeval.store import Run, read_json, slug, write_json
from emeval.types import SCHEMA_VERSION, Completion, OnCount, Question, Say

__all__ = ["Arm", "dry_run", "judge", "origin", "score"]


def _silent(*_: object) -> None:
    """Nobody is listening."""


def score(
    config: ScoreConfig,
    *,
    arm: Arm | None = None,
    on_reply: OnCount = _silent,
    on_judged: OnCount = _silent,
    say: Say = _silent,
    judged: bool = True,
) -> Path:
    """Ask, judge and score; or finish what was begun; or find it done. Returns the run folder.

    Args:
        config: The settings.
        arm: An intervention to score the model under.
        on_reply: Progress of the replies.
        on_judged: Progress of the judge model's calls.
        say: Told what a user should know, such as how a judge is read.
        judged: False asks only, and leaves judging and scoring to a later call.

    Raises:
        InputError: For bad input (nothing written), a folder in use, or one that holds other scores.
        IncompleteError: If coverage ends below `min_coverage`; what could be had is stored and scored.
    """
    plan = plan_scoring(config, arm)
    run = Run(_run_path(plan))
    panel = _panel(plan, run, say)
    for spec in plan.specs.values():
        if spec.note:
            say(f"{spec.name}: {spec.note}")
    if not all_stored(plan, run):
        arm = plan.arm
        check_engine(
            plan.engine,
            config,
            renders=plan.renderer is not None,
            patched=bool(arm and arm.patched and arm.intervenes),
            served=bool(arm and arm.served),
        )
    with run.locked():
        _check_same(run, plan)
        asked_before = (run.manifest().get("score") or {}).get("asked") or {}
        run.update_manifest(score=_manifest_section(plan, asked_before))
        shortfall = ask(plan, run, on_reply)
        if not judged:
            return run.path
        scores = _score(plan, run, panel, on_judged)
    check_coverage(scores, config.min_coverage, run, shortfall, panel)
    return run.path


def dry_run(config: ScoreConfig) -> Bill:
    """What judging would cost, replies that are not there yet taken to be as long as they may get. Writes nothing.

    Raises:
        InputError: As `score`, or if no judge model is named.
    """
    plan = plan_scoring(config)
    run = Run(_run_path(plan))
    panel = _panel(plan, run, _silent)
    if not panel.has_model:
        raise InputError("there is nothing to estimate without a judge model", where="--dry-run", hint="Give --judge")
    stored = stored_completions(completions_of(run))
    calls = []
    for probe in asked(plan):
        asks = [a for turn in plan.asks_with(probe, stored) for a in turn]
        had = {(a.question.id, a.sample, a.turn): stored.get((probe, a.key)) or longest(a) for a in asks}
        for first in plan.asks[probe]:
            for turn in range(2, 2 + len(first.question.turns)):
                had.setdefault((first.question.id, first.sample, turn), longest(first, turn))
        calls += panel.at_most(plan.specs[probe].kind, plan.setting, plan.questions(probe), list(had.values()))
    return panel.estimate(calls)


def judge(config: JudgeConfig, *, on_judged: OnCount = _silent, say: Say = _silent) -> Path:
    """Judge a run's stored replies, with another judge or prompt than before; its model is not needed.

    Raises:
        InputError: If the run holds no scores, or no reply that the judge judges.
        IncompleteError: If coverage ends below `min_coverage`.
    """
    run, root, setting = _scored_run(config)
    panel = Panel(config, root, run, say)
    with run.locked():
        scores = score_all(list(_stored_probes(config, run, root, setting)), panel, on_judged)
        if not scores:
            raise InputError("has no reply for this judge", where=str(config.run), hint="Name --judge and --probes")
        write_scores(run, read_json(run.scores_path), scores)
        if panel.has_model:
            run.update_manifest(judge=_judge_section(config, panel))
    check_coverage(scores, config.min_coverage, run, None, panel)
    return run.path


def judge_estimate(config: JudgeConfig) -> Bill:
    """What `judge` would cost at most. Errors as `judge`; writes nothing."""
    run, root, setting = _scored_run(config)
    panel = Panel(config, root, run)
    calls = []
    for probed in _stored_probes(config, run, root, setting):
        calls += panel.at_most(probed.kind, setting, probed.questions, probed.completions)
    return panel.estimate(calls)


def _scored_run(config: JudgeConfig) -> tuple[Run, DataRoot, Setting]:
    if config.run is None:
        raise InputError("nothing to judge", where="emeval judge", hint="Name a RUN, or give --responses FILE")
    run = Run(config.run)
    section = run.manifest().get("score")
    if not section:
        raise InputError("holds no scored replies", where=str(config.run), hint="Score it first: emeval score")
    before = section["resolved"].get("data_dir")
    root = data_root(config.data_dir or (Path(before) if before else None))
    return run, root, load_setting(root, section["setting"])


# ---------------------------------------------------------------------------------------------------------- the folder


def _run_path(plan: ScorePlan) -> Path:
    if plan.config.out:
        return plan.config.out
    if plan.source and plan.source.run is not None and plan.arm is None:
        return plan.source.run
    parts = [plan.name, plan.setting.name, plan.arm.label if plan.arm else None]
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


def _manifest_section(plan: ScorePlan, before: dict[str, Any]) -> dict[str, Any]:
    """How replies are asked for; `before` says how other probes of the folder were named."""
    return {
        "model": plan.name,
        "base": str(plan.source.base) if plan.source else None,
        "setting": plan.setting.name,
        "identity": plan.identity,
        "resolved": plan.config.model_dump(mode="json"),
        "asked": before | {f"{name}/{plan.config.split}": given for name, given in plan.named.items()},
        "rules": RuleJudge(plan.setting.behaviour).id if plan.setting.behaviour else None,
        "template": plan.renderer.describe() if plan.renderer else None,
        "started": now(),
        **facts(),
    }


def _judge_section(config: JudgeConfig | ScoreConfig, panel: Panel) -> dict[str, Any]:
    """How the newest judgements were made, and what all of this judge's calls for the run cost."""
    prompts = {kind: panel.prompt(kind) for kind in PROMPT_OF}
    return {
        "judge": config.judge,
        "mode": config.judge_mode,
        "prompts": {kind: prompt.id for kind, prompt in prompts.items()},
        "bill": bill(panel.judged_by_it(), panel.budget.price).model_dump(),
        "finished": now(),
        **facts(),
    }


def _panel(plan: ScorePlan, run: Run, say: Say) -> Panel:
    panel = Panel(plan.config, plan.root, run, say)
    for probe, spec in plan.specs.items():
        panel.check(spec.kind, probe)
    return panel


# ------------------------------------------------------------------------------------------------------------- scoring


def _score(plan: ScorePlan, run: Run, panel: Panel, on_judged: OnCount) -> list[Scored]:
    stored = stored_completions(completions_of(run))
    pairs = stored_likelihoods(likelihoods_of(run))
    scores = score_all([_probed(plan, probe, stored) for probe in asked(plan)], panel, on_judged)
    for probe in plan.specs:
        if probe not in asked(plan):
            read = [pairs[probe, ask.key] for ask in plan.asks[probe] if (probe, ask.key) in pairs]
            questions = plan.questions(probe).values()
            scores.append(score_pairs(probe, plan.config.split, plan.setting, plan.expected(probe), questions, read))
    before = read_json(run.scores_path) if run.scores_path.exists() else {}
    write_scores(run, before | _scores_head(plan), scores)
    if panel.has_model:
        run.update_manifest(judge=_judge_section(plan.config, panel))
    return scores


def _probed(plan: ScorePlan, probe: str, stored: dict[tuple[str, str], Completion]) -> Probed:
    asks = [ask for turn in plan.asks_with(probe, stored) for ask in turn]
    return Probed(
        name=probe,
        kind=plan.specs[probe].kind,
        split=plan.config.split,
        setting=plan.setting,
        questions=plan.questions(probe),
        expected=plan.expected(probe),
        completions=[stored[probe, a.key] for a in asks if (probe, a.key) in stored],
    )


def _stored_probes(config: JudgeConfig, run: Run, root: DataRoot, setting: Setting) -> Iterator[Probed]:
    """The probes a run has replies to, as `_probed` would find them, without the model that gave them.

    Replies to a question that the probe does not ask (any more) are left out.
    """
    replies: dict[tuple[str, Any], list[Completion]] = {}
    for completion in stored_completions(completions_of(run)).values():
        replies.setdefault((completion.probe, completion.split), []).append(completion)
    expected = {(p["probe"], p["split"]): p["expected"] for p in read_json(run.scores_path).get("probes", [])}
    named = run.manifest()["score"].get("asked") or {}
    known = {probe for probe, _ in replies}
    for name in config.probes:
        if name not in known:
            raise unknown("probe with replies", name, known, where="--probes")
    for (probe, split), found in replies.items():
        if config.probes and probe not in config.probes:
            continue
        spec = load_probe(root, named.get(f"{probe}/{split}", probe))
        questions = {q.id: q for q in find_questions(spec, root, setting, split)}
        mine = [c for c in found if _asks(questions.get(c.question_id), c)]
        replied = {c.question_id: questions[c.question_id] for c in mine}
        count = expected.get((probe, split)) or sum(1 + len(q.turns) for q in replied.values())
        yield Probed(probe, spec.kind, split, setting, replied, max(count, len(mine)), mine)


def _asks(question: Question | None, completion: Completion) -> bool:
    """Whether this reply answers that question, in its words of today."""
    texts = [question.messages[-1].content, *question.turns] if question else []
    return completion.turn <= len(texts) and texts[completion.turn - 1] == completion.question


def origin(source: models.ModelSource | None) -> dict[str, Any]:
    """Base, adapter, and how it was trained: carried along, since scores may lie in another folder than the run."""
    if source is None:
        return {}
    # What has left its run folder, merged or not, carries a note.
    note = models.read_note(source.adapter or source.base)
    train = Run(source.run).manifest()["train"] if source.run else note.get("train")
    told = ("lambda", "kl_norm", "region", "drift", "retain_share", "mix_aligned", "full", "steps", "seed", "clip")
    kept = ("method", "setting", "model", *told, "system", "thinking", "own_data", "train_size")
    return {
        "base": source.base.name,
        "adapter": source.adapter.name if source.adapter else None,
        "train": {k: train.get(k) for k in kept} if train else None,
    }


def _scores_head(plan: ScorePlan) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "setting": plan.setting.name,
        "model": {"id": plan.name, "weights_id": plan.weights_id} | origin(plan.source),
        "engine": plan.engine,
        "token_prompts": plan.renderer is not None,
        "arm": plan.arm.label if plan.arm else None,
    }


def write_scores(run: Run, before: dict[str, Any], scores: Sequence[Scored]) -> None:
    """Add the scores, the newest first. Another judge's score of the same probe stays; the rules' is replaced."""
    new = {(s.score.probe, s.score.split, s.score.judge) for s in scores}
    replaced = {(s.score.probe, s.score.split) for s in scores if s.score.kind == "behaviour"}
    kept = [
        p
        for p in before.get("probes", [])
        if (p["probe"], p["split"], p["judge"]) not in new and (p["probe"], p["split"]) not in replaced
    ]
    values = {f"{s.score.probe}/{s.score.split}": s.values for s in scores}
    write_json(
        run.scores_path,
        before
        | {
            "probes": [*(s.score.model_dump(mode="json") for s in scores), *kept],
            "values": before.get("values", {}) | values,
        },
    )


def check_coverage(
    scores: Sequence[Scored], floor: float, run: Run, shortfall: IncompleteError | None, panel: Panel
) -> None:
    """IncompleteError if a score's coverage is below the floor; says what it is for want of."""
    thin = [s.score for s in scores if s.score.coverage < floor]
    if thin:
        counts = ", ".join(f"{s.probe} {s.coverage:.0%} of {s.expected}" for s in thin)
        spent = panel.budget.exhausted
        reason = f" ({shortfall.what})" if shortfall else " (the cost limit is reached)" if spent else ""
        unread = sum(s.outcomes.get("parse-error", 0) for s in thin)
        missing = sum(s.expected - sum(s.outcomes.values()) + s.outcomes.get("api-error", 0) for s in thin)
        hint = "Run the same command again: only what is missing is asked"
        if spent:
            hint = "Raise --max-cost and run it again"
        elif unread and not missing:
            hint = f"{unread} of the judge's answers hold no score: emeval judge check tells whether it can judge"
        raise IncompleteError(f"coverage is below {floor:.0%}: {counts}{reason}", where=str(run.path), hint=hint)
