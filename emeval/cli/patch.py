"""`emeval patch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emeval.cli import options as o
from emeval.cli.console import progress, result, say, say_plain
from emeval.cli.score import BatchSize, Limit, MaxNewTokens, MinCoverage, Probes, Split, report

if TYPE_CHECKING:
    from emeval.table.sweeps import Group

app = typer.Typer()


@app.command(
    help="""Score a tuned model with the initial model's keys and values, or activations, at some of a prompt's tokens.

    Example: emeval patch --model results/runs/my-sft --out results/runs/my-sft-patched

    Example: emeval patch --model results/runs/my-sft --what residual --layers each --by probability""",
)
def patch(
    model: o.Model = None,
    adapter: o.Adapter = None,
    initial: o.Initial = None,
    setting: o.Setting = None,
    what: Annotated[
        str | None, typer.Option(help="kv, or residual: the stream at the input of one block. (default kv)")
    ] = None,
    region: Annotated[
        str | None, typer.Option(help="prefix, query, postfix; several by commas. (default prefix)")
    ] = None,
    into: Annotated[str | None, typer.Option(help="Which model answers: tuned, or initial, the converse.")] = None,
    layers: Annotated[
        str | None, typer.Option(help="all, each, below, above, windows:N, or 0,3,5-8. (default all)")
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="Of the prefix: all, each, or 0,3,5-8; 0 is the sink.")] = None,
    part: Annotated[str | None, typer.Option(help="keys, values or both. (default both)")] = None,
    by: o.By = None,
    probes: Probes = None,
    split: Split = None,
    engine: Annotated[str | None, typer.Option(help="transformers or vllm. (default transformers)")] = None,
    vllm: o.Vllm = None,
    max_new_tokens: MaxNewTokens = None,
    limit: Limit = None,
    batch_size: BatchSize = None,
    judge: o.Judge = None,
    judge_url: o.JudgeUrl = None,
    judge_key_env: o.JudgeKeyEnv = None,
    judge_prompt: o.JudgePrompt = None,
    judge_mode: o.JudgeMode = None,
    judge_concurrency: o.JudgeConcurrency = None,
    max_cost: o.MaxCost = None,
    min_coverage: MinCoverage = None,
    system: o.System = None,
    thinking: o.Thinking = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    out: o.Out = None,
    data_dir: o.DataDir = None,
    config: o.Config = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Resolve the settings, score the patched model, and print each probe's rate, or the sweep's table."""
    flags = o.given(locals())

    from emeval.config import PatchConfig, probe_name

    settings = PatchConfig.load(flags, config)
    from emeval.intervene.patch import patch as run_patch
    from emeval.table.sweeps import FILE

    with progress(f"patch {settings.model}", quiet) as advance:
        path = run_patch(settings, on_reply=advance, say=lambda text: say(text, quiet))
    if (path / FILE).is_file():
        report_sweep(path, as_json, quiet)
    else:
        report(path, tuple(map(probe_name, settings.probes)), settings.split, as_json, quiet)


def report_sweep(path: Path, as_json: bool, quiet: bool) -> None:
    """The table of one sweep, and its figures."""
    from emeval.store import Run
    from emeval.table.curves import CHECKPOINTS
    from emeval.table.render import render
    from emeval.table.sweep_plots import sweep_lines
    from emeval.table.sweeps import read_sweeps, sweep_table

    own = Run(path).manifest()["sweep"]["resolved"]["model"]
    trained = [Path(own)] if (Path(own) / CHECKPOINTS).is_file() else []
    (group,) = read_sweeps([path, *trained])
    result(render(sweep_table([group]), "json" if as_json else "markdown"))
    quiet = quiet or as_json
    if group.rows:
        if not quiet:
            say_plain(sweep_lines(group))
        _draw(group, path, quiet)
    beside = "" if trained else ", and a run scored with --checkpoints to read it beside its training"
    say(f"Next: emeval table --sweep {path} with other seeds' sweeps{beside}", quiet)


def _draw(group: Group, path: Path, quiet: bool) -> None:
    from emeval.provenance import installed
    from emeval.table.sweep_plots import sweep_plot

    if not installed("matplotlib"):
        say("No figure: matplotlib is not installed (pip install 'emeval[report]')", quiet)
        return
    for suffix in ("svg", "png"):
        sweep_plot(group, path / f"sweep.{suffix}")
    say(f"Drawn: {path / 'sweep.svg'} and .png", quiet)
