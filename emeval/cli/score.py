"""`emeval score`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emeval.cli import options as o
from emeval.cli.console import clean, progress, result, result_json, say
from emeval.score.figures import measure

if TYPE_CHECKING:
    from emeval.config import ScoreConfig
    from emeval.judge.cost import Bill
    from emeval.types import ProbeScore

app = typer.Typer()

Probes = Annotated[
    str | None,
    typer.Option(help="Question sets, by commas. (default on-topic,off-topic; contrast for a domain)"),
]
Split = Annotated[str | None, typer.Option(help="test, or val for choosing settings. (default test)")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Longest reply. (default what the behaviour says)")]
Limit = Annotated[int | None, typer.Option(help="Ask only the first N questions of each probe.")]
BatchSize = Annotated[int | None, typer.Option(help="Rows per batch, transformers engine. (default 32)")]
MinCoverage = Annotated[float | None, typer.Option(help="Exit 3 below this share of usable replies. (default 0.95)")]


@app.command(
    help="""Ask, judge, score. Running it again asks only what is missing; a finished run answers at once.

    Example: emeval score --model results/runs/my-treft --probes on-topic,off-topic""",
)
def score(
    model: o.Model = None,
    adapter: o.Adapter = None,
    setting: o.Setting = None,
    probes: Probes = None,
    split: Split = None,
    engine: Annotated[str | None, typer.Option(help="auto, transformers, vllm or endpoint. (default auto)")] = None,
    model_url: Annotated[str | None, typer.Option(help="Base URL of an OpenAI-compatible server.")] = None,
    model_name: Annotated[str | None, typer.Option(help="The model's name there. (default the first listed)")] = None,
    model_api: Annotated[str | None, typer.Option(help="auto, completions (token ids) or chat. (default auto)")] = None,
    key_env: Annotated[str | None, typer.Option(help="Variable with the key. (default OPENAI_API_KEY)")] = None,
    vllm: o.Vllm = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy. (default 0)")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus, with a temperature. (default 1)")] = None,
    samples: Annotated[int | None, typer.Option(help="Replies per question. (default 1)")] = None,
    limit: Limit = None,
    batch_size: BatchSize = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests in flight to a server. (default 32)")] = None,
    checkpoints: Annotated[
        bool | None, typer.Option("--checkpoints", help="Score the models that train --checkpoints N kept.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="probability (cheap, the default) or generation; a domain's by contrast.")
    ] = None,
    judge: o.Judge = None,
    judge_url: o.JudgeUrl = None,
    judge_key_env: o.JudgeKeyEnv = None,
    judge_prompt: o.JudgePrompt = None,
    rating_prompt: o.RatingPrompt = None,
    judge_mode: o.JudgeMode = None,
    judge_concurrency: o.JudgeConcurrency = None,
    judge_batch: o.JudgeBatch = None,
    coherence: o.Coherence = None,
    dry_run: o.DryRun = None,
    max_cost: o.MaxCost = None,
    min_coverage: MinCoverage = None,
    allow_prefix_change: Annotated[
        bool | None, typer.Option("--allow-prefix-change", help="Score under another template than trained with.")
    ] = None,
    system: o.System = None,
    thinking: o.Thinking = None,
    seed: o.Seed = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    out: o.Out = None,
    data_dir: o.DataDir = None,
    config: o.Config = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Resolve the settings, score, and print each probe's rate."""
    flags = o.given(locals())

    from emeval.config import ScoreConfig, probe_name

    settings = ScoreConfig.load(flags, config)
    if settings.checkpoints:
        _along(settings, as_json, quiet)
        return
    if settings.dry_run:
        from emeval.pipeline import dry_run as estimate

        tell_estimate(estimate(settings), as_json, quiet)
        return
    from emeval.pipeline import score as run_scoring

    with progress(f"score {settings.model}", quiet) as advance:

        def judged(done: int, total: int) -> None:
            advance(done, total, "judged")

        path = run_scoring(settings, on_reply=advance, on_judged=judged, say=lambda text: say(text, quiet))
    report(path, tuple(map(probe_name, settings.probes)), settings.split, as_json, quiet)


def _along(settings: ScoreConfig, as_json: bool, quiet: bool) -> None:
    from emeval.checkpoints import FILE, score_checkpoints
    from emeval.store import read_json

    with progress(f"score {settings.model} along its training", quiet) as advance:
        path = score_checkpoints(settings, on_reply=advance)
    found = read_json(path / FILE)["points"]
    by = "contrast" if any(p["mode"] == "contrast" for p in found) else settings.by  # a domain's run has no other
    points = [p for p in found if (p["split"], p["mode"]) == (settings.split, by)]
    means = [{"step": p["step"], "on": _mean(p["on"]), "off": _mean(p["off"])} for p in points]
    if as_json:
        result_json({"run": str(path), "split": settings.split, "by": by, "points": means})
    else:
        result(f"{by}, {settings.split}, mean over questions")
        for point in means:
            result(f"step {point['step']}: on-topic {100 * point['on']:.1f} %, off-topic {100 * point['off']:.1f} %")
    say(f"Next: emeval table --matched --curve curve.svg {path}", quiet or as_json)


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)


def tell_estimate(bill: Bill, as_json: bool, quiet: bool) -> None:
    """What `--dry-run` found."""
    if as_json:
        result_json({"estimate": bill.model_dump()})
        return
    cost = "no price is known for it" if bill.dollars is None else f"at most about ${bill.dollars:.2f}"
    result(f"{bill.calls} judge calls, about {bill.input_tokens} tokens in, up to {bill.output_tokens} out: {cost}")
    say("Replies that are not there yet were taken to be as long as they may get. Nothing was asked.", quiet)


def report(path: Path, probes: tuple[str, ...], split: str | None, as_json: bool, quiet: bool) -> None:
    """What a scored run found: one line a probe, or the whole `scores.json`."""
    from emeval.store import Run, read_json
    from emeval.types import ProbeScore

    scores = read_json(Run(path).scores_path)
    if as_json:
        result_json({"run": str(path), "scores": {k: v for k, v in scores.items() if k != "values"}})
    else:
        for entry in scores["probes"]:
            if entry["probe"] in (probes or (entry["probe"],)) and entry["split"] == (split or entry["split"]):
                result(_line(ProbeScore.model_validate(entry)))
    say(f"Next: emeval table {path}", quiet or as_json)


def _line(score: ProbeScore) -> str:
    shown = [("" if n == "rate" else f"{n} ") + measure(n, found) for n, found in score.measures.items()]
    first = next(iter(score.measures.values()), None)
    details = ", ".join(f"{clean(k)} {v}" for k, v in sorted(score.details.items(), key=lambda kv: -kv[1])[:6])
    others = [f"{v} {k}" for k, v in score.outcomes.items() if k != "scored"]
    scored = score.outcomes.get("scored", 0)
    counts = [f"n {scored}/{score.expected}", f"truncated {score.truncated}", *others]
    if first and first.n != scored and score.kind != "contrast":
        counts.insert(1, f"{first.n} questions")
    judge = "" if score.kind in ("behaviour", "contrast", "brevity") else f" by {clean(score.judge)}"
    line = f"{score.probe} ({score.split}){judge}: {'; '.join(shown)}, {', '.join(counts)}"
    return f"{line} ({details})" if details else line
