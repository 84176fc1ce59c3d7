"""`emeval perturb`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emeval.cli import options as o
from emeval.cli.console import progress, say
from emeval.cli.patch import report_sweep
from emeval.cli.score import BatchSize, Limit, MaxNewTokens, MinCoverage, Probes, Split

app = typer.Typer()


@app.command(
    help="""Ask with some of the prompt's tokens, or all of its words, replaced: average and extremes over trials.

    Example: emeval perturb --model results/runs/my-sft --region prefix,query,postfix --by probability

    Example: emeval perturb --model results/runs/my-sft --rephrase gpt-5 --capitals""",
)
def perturb(
    model: o.Model = None,
    adapter: o.Adapter = None,
    setting: o.Setting = None,
    region: Annotated[
        str | None, typer.Option(help="Where: prefix, query, postfix; several by commas. (default prefix)")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="How many of a region's tokens. (default 10)")] = None,
    neighbours: Annotated[int | None, typer.Option(help="Replace by one of so many nearest. (default 5)")] = None,
    similarity: Annotated[str | None, typer.Option(help="dot or cosine. (default dot)")] = None,
    trials: Annotated[int | None, typer.Option(help="Times each question is asked otherwise. (default 10)")] = None,
    random: Annotated[bool | None, typer.Option("--random", help="Replace by any token.")] = None,
    special: Annotated[bool | None, typer.Option("--special", help="Let special tokens be put in.")] = None,
    capitals: Annotated[bool | None, typer.Option("--capitals", help="Ask in capital letters.")] = None,
    rephrase: Annotated[str | None, typer.Option(help="Model that writes the questions anew.")] = None,
    rephrase_url: Annotated[str | None, typer.Option(help="Its OpenAI-compatible server. (default OpenAI's)")] = None,
    rephrase_key_env: Annotated[
        str | None, typer.Option(help="Variable with its key. (default OPENAI_API_KEY)")
    ] = None,
    by: o.By = None,
    probes: Probes = None,
    split: Split = None,
    engine: Annotated[str | None, typer.Option(help="auto, transformers, vllm or endpoint. (default auto)")] = None,
    model_url: Annotated[str | None, typer.Option(help="Base URL of an OpenAI-compatible server.")] = None,
    model_name: Annotated[str | None, typer.Option(help="The model's name there. (default the first listed)")] = None,
    model_api: Annotated[str | None, typer.Option(help="auto, completions (token ids) or chat. (default auto)")] = None,
    key_env: Annotated[str | None, typer.Option(help="Variable with the key. (default OPENAI_API_KEY)")] = None,
    vllm: o.Vllm = None,
    max_new_tokens: MaxNewTokens = None,
    limit: Limit = None,
    batch_size: BatchSize = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests in flight to a server. (default 32)")] = None,
    judge: o.Judge = None,
    judge_url: o.JudgeUrl = None,
    judge_key_env: o.JudgeKeyEnv = None,
    judge_prompt: o.JudgePrompt = None,
    judge_mode: o.JudgeMode = None,
    judge_concurrency: o.JudgeConcurrency = None,
    max_cost: o.MaxCost = None,
    min_coverage: MinCoverage = None,
    system: Annotated[
        str | None, typer.Option(help="Ask behind another system prompt, too; or none, or no-prefix.")
    ] = None,
    seed: o.Seed = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    out: o.Out = None,
    data_dir: o.DataDir = None,
    config: o.Config = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Resolve the settings, measure, print the table."""
    flags = o.given(locals())

    from emeval.config import PerturbConfig

    settings = PerturbConfig.load(flags, config)
    from emeval.intervene.perturb import perturb as run_perturb

    with progress(f"perturb {settings.model}", quiet) as advance:
        path: Path = run_perturb(settings, on_reply=advance, say=lambda text: say(text, quiet))
    report_sweep(path, as_json, quiet)
