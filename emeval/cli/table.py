"""`emeval table`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from emeval.cli import options as o
from emeval.cli.console import result, say, say_plain

app = typer.Typer()


@app.command(
    help="""Print Tables 1 (EM-F1), 2 (leakage) and 3 (regularisers) of your runs, --paper the paper's beside or alone.

    Example: emeval table results/runs/my-sft results/runs/my-treft""",
)
def table(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders. (default: all of results/runs)")] = None,
    which: Annotated[str | None, typer.Option("--table", help="1, 2, 3 or all. (default: what the runs hold)")] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's figures, with notes on what does not hold.")
    ] = False,
    matched: Annotated[
        bool, typer.Option("--matched", help="Compare methods at the same on-topic rate (score --checkpoints first).")
    ] = False,
    levels: Annotated[
        str | None, typer.Option(help="On-topic levels in percent, by commas. (default: chosen on the val split)")
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="With --matched: generation, probability, contrast. (default: what all have)")
    ] = None,
    split: Annotated[str, typer.Option(help="With --matched or --curve: test or val.")] = "test",
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Sweeps of emeval patch; runs named along are training to read them beside.")
    ] = False,
    curve: Annotated[
        Path | None, typer.Option(help="Draw off-topic against on-topic along training into this .svg or .png.")
    ] = None,
    output: Annotated[str, typer.Option("--format", help="markdown, csv, json or latex.")] = "markdown",
    data_dir: o.DataDir = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Read the runs, print the table."""
    from emeval.data.root import data_root
    from emeval.errors import InputError, unknown
    from emeval.judge.qualify import verdict as judge_standing
    from emeval.table.alignment import alignment_table, read_alignment
    from emeval.table.paper import beside, paper_tables
    from emeval.table.render import leakage_table, render
    from emeval.table.rows import default_runs, read_rows

    output = "json" if as_json else output
    if output not in ("markdown", "csv", "json", "latex"):
        raise unknown("format", output, ("markdown", "csv", "json", "latex"), where="--format")
    if which is not None and which not in ("1", "2", "3", "all"):
        raise unknown("table", which, ("1", "2", "3", "all"), where="--table")
    papers = paper_tables(which or "all", data_root(data_dir).shipped) if paper else []  # type: ignore[arg-type]
    if paper and not runs:
        result(render(papers, output))
        return
    if split not in ("test", "val"):
        raise unknown("split", split, ("test", "val"), where="--split")
    if by not in (None, "generation", "probability", "contrast"):
        raise unknown("way", by, ("generation", "probability", "contrast"), where="--by")
    if sweep:
        others = any((matched, paper, which, levels, by, split != "test"))
        _sweeps(runs or [], others, curve, output, quiet or as_json)
        return
    third = which == "3"
    if (matched or curve) and (paper or (which and not third)):
        where = "--paper" if paper else "--table"
        raise InputError("does not go with --matched or --curve", where=where, hint="Leave it out")
    if matched or curve or third:
        _matched(runs, matched or third, third, papers, _levels(levels), by, split, curve, output, quiet or as_json)
        return
    for option, given in (("--levels", levels), ("--by", by), ("--split", split != "test")):
        if given:
            raise InputError("belongs to --matched and --curve", where=option, hint="Add --matched")
    paths = runs or default_runs(Path("results") / "runs")
    made: list[tuple[Any, Any]] = []
    aligned = read_alignment(paths)
    if which in ("1", "all") or (which is None and aligned):
        made.append((alignment_table(aligned, judge_standing), aligned))
    leaking = [row for row in read_rows(paths) if row.on_topic or row.off_topic]
    if which in ("2", "all") or (which is None and (leaking or not aligned)):
        made.append((leakage_table(leaking), leaking))
    tables = [beside(found, rows, data_root(data_dir).shipped) if paper else found for found, rows in made]
    result(render([*tables, *papers], output))
    say(f"Next: emeval table --paper --table {tables[0].number} prints the paper's figures", quiet or as_json)


def _sweeps(runs: list[Path], others: bool, curve: Path | None, output: str, quiet: bool) -> None:
    from emeval.errors import InputError
    from emeval.table.render import render
    from emeval.table.sweep_plots import sweep_lines, sweep_plot
    from emeval.table.sweeps import read_sweeps, sweep_table

    if others:
        what = "goes with no other table, nor with --levels, --by and --split"
        raise InputError(what, where="--sweep", hint="Leave the other out")
    groups = read_sweeps(runs)
    result(render(sweep_table(groups), output))
    if curve is None:
        return
    if len(groups) != 1:
        names = "; ".join(group.title for group in groups)
        raise InputError(f"these sweeps are of several kinds ({names})", where="--curve", hint="Name those of one")
    sweep_plot(groups[0], curve)
    if not quiet:
        say_plain(sweep_lines(groups[0]))
    say(f"Drawn: {curve}", quiet)


def _matched(
    runs: list[Path] | None,
    table_wanted: bool,
    costs: bool,
    papers: list[Any],
    levels: list[float] | None,
    by: Any,
    split: Any,
    curve: Path | None,
    output: str,
    quiet: bool,
) -> None:
    from emeval.errors import InputError
    from emeval.table.curves import matched_table, read_curves, runs_with_curves
    from emeval.table.render import render

    paths = runs or runs_with_curves(Path("results") / "runs")
    if not paths:
        raise InputError(
            "no run was scored along its training",
            where="results/runs",
            hint="Train with --checkpoints N, then emeval score --model RUN --checkpoints",
        )
    if table_wanted:
        found = matched_table(paths, split, levels=levels, mode=by, costs=costs)
        result(render([found, *papers], output))
    if curve is None:
        say("Next: emeval table --curve curve.svg draws off-topic against on-topic", quiet)
        return
    from emeval.table.plots import curve_plot, terminal_plot

    groups = read_curves(paths, split, by)
    if len(groups) != 1:
        names = "; ".join(group.name for group in groups)
        raise InputError(f"these runs are of several kinds ({names})", where="--curve", hint="Name the runs of one")
    (group,) = groups
    curve_plot(group.methods, curve, title=group.name, level=levels[0] if levels else None, sides=group.sides)
    if not quiet:
        say_plain(terminal_plot(group.methods, sides=group.sides))
    say(f"Drawn: {curve}", quiet)


def _levels(text: str | None) -> list[float] | None:
    """Percent, by commas, as shares."""
    from emeval.errors import InputError

    if text is None:
        return None
    try:
        found = [float(part) / 100 for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < level <= 1 for level in found):
        raise InputError("give levels in percent, above 0 and up to 100", where=f"--levels {text}", hint="Like 75,90")
    return found
