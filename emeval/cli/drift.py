"""`emeval drift`."""

from __future__ import annotations

from typing import Annotated

import typer

from emeval.cli import options as o
from emeval.cli.console import result, result_json, say, say_plain

app = typer.Typer()


@app.command(
    help="""Show how far a tuned model's prefix has moved from the initial model's, by layer and token. Seconds.

    Example: emeval drift --model results/runs/my-sft --against results/runs/my-treft --out results/runs/my-drift""",
)
def drift(
    model: o.Model = None,
    adapter: o.Adapter = None,
    initial: o.Initial = None,
    against: Annotated[
        str | None, typer.Option(help="Another run or adapter of the same base: cosines of the changes, by layer.")
    ] = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    out: Annotated[
        str | None, typer.Option(help="Folder for drift.json and the figures. (default: none written)")
    ] = None,
    config: o.Config = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Measure, print the table and a small map."""
    flags = o.given(locals())

    from emeval.config import DriftConfig

    settings = DriftConfig.load(flags, config)
    from emeval.intervene.drift import drift as measure
    from emeval.intervene.drift import save
    from emeval.table.drift import drift_lines, drift_table
    from emeval.table.render import render

    found = measure(settings)
    quiet = quiet or as_json
    if as_json:
        result_json(found.model_dump())
    else:
        result(render([drift_table(found)], "markdown"))
    if not quiet:
        say_plain(drift_lines(found))
    if settings.out is None:
        say("Next: the same with --out DIR writes drift.json and the figures", quiet)
        return
    drawn = save(found, settings.out)
    if not drawn:
        say("No figure: matplotlib is not installed (pip install 'emeval[report]')", quiet)
    say(f"Written: {settings.out / 'drift.json'}{', ' if drawn else ''}{', '.join(map(str, drawn))}", quiet)
    say(f"Next: emeval patch --model {settings.model} --by probability tells what of the behaviour hangs on it", quiet)
