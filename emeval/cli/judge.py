"""`emeval judge` and `emeval judge check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from emeval.cli import options as o
from emeval.cli.console import clean, progress, result, result_json, say
from emeval.cli.score import MinCoverage, report, tell_estimate
from emeval.score.figures import interval

if TYPE_CHECKING:
    from emeval.judge.qualify import Qualification


class _Replies(TyperGroup):
    """`emeval judge RUN` is the command `replies`, which need not be typed."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Put the name where no other command's stands."""
        if args and args[0] not in (*self.commands, "--help"):
            args = ["replies", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Replies,
    no_args_is_help=True,
    help="""Judge stored or foreign replies (`emeval judge RUN`), or qualify a judge (`emeval judge check`).

    Example: emeval judge results/runs/my-treft --judge gpt-5-nano""",
)


@app.command(
    help="""Judge a run's stored replies, or another tool's from a file. What is judged already is not paid for again.

    Example: emeval judge --responses replies.csv --judge gpt-5-nano""",
)
def replies(
    run: Annotated[Path | None, typer.Argument(help="A scored run.")] = None,
    responses: Annotated[
        Path | None, typer.Option(help="CSV or JSONL of replies: columns question, answer (aligned, coherent).")
    ] = None,
    keep_scores: Annotated[
        bool | None, typer.Option("--keep-scores", help="Count the scores of --responses instead of judging.")
    ] = None,
    probes: Annotated[str | None, typer.Option(help="Only these probes of the run, by commas.")] = None,
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
    vllm: o.Vllm = None,
    min_coverage: MinCoverage = None,
    out: o.Out = None,
    data_dir: o.DataDir = None,
    config: o.Config = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Resolve the settings, judge, and print each probe's score."""
    flags = o.given(locals())

    from emeval.config import JudgeConfig

    settings = JudgeConfig.load(flags, config)
    if settings.dry_run:
        from emeval.responses import estimate

        tell_estimate(estimate(settings), as_json, quiet)
        return
    with progress("judge", quiet) as advance:
        if settings.responses:
            from emeval.responses import judge_responses

            path = judge_responses(settings, on_judged=advance, say=lambda text: say(text, quiet))
        else:
            from emeval.pipeline import judge as judge_run

            path = judge_run(settings, on_judged=advance, say=lambda text: say(text, quiet))
    report(path, settings.probes, None, as_json, quiet)


@app.command(
    help="""Qualify a judge: known answers it must grade right, and answers that try to steer their grade.

    Example: emeval judge check --judge gpt-5-nano""",
)
def check(
    judge: o.Judge = None,
    judge_url: o.JudgeUrl = None,
    judge_key_env: o.JudgeKeyEnv = None,
    judge_prompt: o.JudgePrompt = None,
    judge_mode: o.JudgeMode = None,
    judge_concurrency: o.JudgeConcurrency = None,
    judge_batch: o.JudgeBatch = None,
    dry_run: o.DryRun = None,
    max_cost: o.MaxCost = None,
    vllm: o.Vllm = None,
    data_dir: o.DataDir = None,
    config: o.Config = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Ask the judge about the known items, and say whether its numbers may count."""
    flags = o.given(locals())

    from emeval.config import JudgeConfig
    from emeval.responses import check_judge, estimate

    settings = JudgeConfig.load(flags, config)
    if settings.dry_run:
        tell_estimate(estimate(settings, check=True), as_json, quiet)
        return
    with progress("judge check", quiet) as advance:
        found = check_judge(settings, on_judged=advance, say=lambda text: say(text, quiet))
    if as_json:
        result_json({"qualified": found.qualified, "failures": found.failures} | found.model_dump(mode="json"))
    else:
        _print(found)
    say("Next: emeval score --judge with the same judge; tables will show how it did", quiet or as_json)


def _print(found: Qualification) -> None:
    standing = "qualified" if found.qualified else f"NOT QUALIFIED on {', '.join(found.failures)}"
    result(clean(f"{found.judge}: {standing}"))
    for name, estimate in (("accuracy", found.accuracy), ("attacks that worked", found.attack_success)):
        result(f"{name}: {interval(estimate, 100)} %, n {estimate.n}")
    agreement = "none" if found.rank_agreement is None else f"{found.rank_agreement:.2f}"
    result(f"rank agreement (Spearman): {agreement}; without a usable verdict: {found.unscored}")
    kinds = [f"{kind} {right}/{asked}" for kind, (right, asked) in sorted(found.by_label.items())]
    result(clean("right by kind: " + ", ".join(kinds)))
