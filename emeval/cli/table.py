"""`emeval table`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emeval.cli import options as o
from emeval.cli.console import result, say

app = typer.Typer()


@app.command(
    help="""Print the leakage table (Table 2) of your runs, or with --paper the paper's own tables.

    Example: emeval table results/runs/my-sft results/runs/my-treft""",
)
def table(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders. (default: all of results/runs)")] = None,
    which: Annotated[str | None, typer.Option("--table", help="1, 2, 3 or all. (default: 2; with --paper all)")] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's figures, with notes on what does not hold.")
    ] = False,
    output: Annotated[str, typer.Option("--format", help="markdown, csv, json or latex.")] = "markdown",
    data_dir: o.DataDir = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Read the runs, print the table."""
    from emeval.data.root import data_root
    from emeval.errors import InputError, unknown
    from emeval.table.paper import paper_tables
    from emeval.table.render import leakage_table, render
    from emeval.table.rows import default_runs, read_rows

    output = "json" if as_json else output
    if output not in ("markdown", "csv", "json", "latex"):
        raise unknown("format", output, ("markdown", "csv", "json", "latex"), where="--format")
    if which is not None and which not in ("1", "2", "3", "all"):
        raise unknown("table", which, ("1", "2", "3", "all"), where="--table")
    if paper:
        result(render(paper_tables(which or "all", data_root(data_dir).shipped), output))  # type: ignore[arg-type]
        return
    if which not in (None, "2", "all"):
        raise InputError(
            f"Table {which} is not made from runs yet", where="--table", hint="Add --paper for the paper's"
        )
    paths = runs or default_runs(Path("results") / "runs")
    result(render([leakage_table(read_rows(paths))], output))
    say("Next: emeval table --paper --table 2 prints the paper's figures", quiet or as_json)
