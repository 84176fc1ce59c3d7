"""`emeval patch`."""

from __future__ import annotations

from typing import Annotated

import typer

from emeval.cli import options as o
from emeval.cli.console import progress
from emeval.cli.score import BatchSize, Limit, MaxNewTokens, MinCoverage, Probes, Split, report

app = typer.Typer()


@app.command(
    help="""Score a LoRA-tuned model with the initial model's prefix in place of its own.

    Example: emeval patch --model results/runs/my-sft --out results/runs/my-sft-patched""",
)
def patch(
    model: o.Model = None,
    adapter: o.Adapter = None,
    setting: o.Setting = None,
    what: Annotated[str | None, typer.Option(help="What is patched: kv. (default kv)")] = None,
    region: Annotated[str | None, typer.Option(help="Which tokens: prefix. (default prefix)")] = None,
    probes: Probes = None,
    split: Split = None,
    max_new_tokens: MaxNewTokens = None,
    limit: Limit = None,
    batch_size: BatchSize = None,
    min_coverage: MinCoverage = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    out: o.Out = None,
    data_dir: o.DataDir = None,
    config: o.Config = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Resolve the settings, score the patched model, and print each probe's rate."""
    flags = o.given(locals())

    from emeval.config import PatchConfig

    settings = PatchConfig.load(flags, config)
    from emeval.intervene.kv import patch as run_patch

    with progress(f"patch {settings.model}", quiet) as advance:
        path = run_patch(settings, on_reply=advance)
    report(path, settings.probes, settings.split, as_json, quiet)
