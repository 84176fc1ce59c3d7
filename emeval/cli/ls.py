"""`emeval ls`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
        raise InputError("no such folder", where=str(folder), hint="Train or score something first")
    rows = [_row(Run(p)) for p in sorted(folder.iterdir()) if Run.is_run(p)]
    if as_json:
        result_json({"runs": rows})
        return
    for row in rows:
        result(clean(f"{row['path']}  {row['train']}  {row['score']}"))
    say(f"{len(rows)} runs. Next: emeval table {folder}/*", quiet)


def _row(run: Any) -> dict[str, str]:
    from emeval.store import read_json

    manifest = run.manifest()
    train = manifest.get("train")
    trained = f"{train['method']} {train['setting'] or 'own data'} ({train['status']})" if train else "not trained"
    scored = "not scored"
    if run.scores_path.exists():
        probes = read_json(run.scores_path)["probes"]
        scored = ", ".join(
            f"{p['probe']}/{p['split']} " + ("–" if p["rate"]["value"] is None else f"{p['rate']['value']:.0%}")
            for p in probes
        )
    return {"path": str(run.path), "train": trained, "score": scored}
