"""`emeval ls`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emeval.cli import options as o
from emeval.cli.console import clean, result, result_json, say

app = typer.Typer()


@app.command(
    help="""List the runs in a folder: what was trained, what was scored.

    Example: emeval ls results/runs""",
)
def ls(
    folder: Annotated[Path | None, typer.Argument(help="Folder of runs. (default: results/runs)")] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """One line a run."""
    from emeval.errors import InputError
    from emeval.store import Run

    folder = folder or Path("results") / "runs"
    if not folder.is_dir():
        raise InputError("no such folder", where=str(folder), hint="Train or score something first, or name its folder")
    paths = [folder] if Run.is_run(folder) else sorted(p for p in folder.iterdir() if Run.is_run(p))
    rows = [_row(path) for path in paths]
    if as_json:
        result_json({"runs": rows})
        return
    for row in rows:
        result(clean("  ".join(row.values())))
    following = f"Next: emeval table {' '.join(r['path'] for r in rows[:3])}" if rows else "Next: emeval train --help"
    say(f"{len(rows)} run{'' if len(rows) == 1 else 's'}. {following}", quiet)


def _row(path: Path) -> dict[str, str]:
    """A run in words; one that cannot be read says so and does not hide the others."""
    from emeval.errors import EmevalError

    try:
        return {"path": str(path), "train": _trained(path), "score": _scored(path)}
    except EmevalError as e:
        return {"path": str(path), "train": "cannot be read", "score": e.what}


def _trained(path: Path) -> str:
    from emeval.store import Run

    train = Run(path).manifest().get("train")
    if not train:
        return "not trained"
    return f"{train.get('method')} {train.get('setting') or 'own data'} ({train.get('status')})"


def _scored(path: Path) -> str:
    from emeval.score.figures import measure
    from emeval.store import Run, read_json
    from emeval.types import ProbeScore

    run = Run(path)
    if not run.scores_path.exists():
        return "not scored"
    probes = [ProbeScore.model_validate(p) for p in read_json(run.scores_path).get("probes", [])]
    return ", ".join(f"{p.probe}/{p.split} {measure(*next(iter(p.measures.items())))}" for p in probes if p.measures)
