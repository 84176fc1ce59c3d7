"""`emeval data import` and `emeval data fetch`: published sets."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emeval.cli import options as o
from emeval.cli.console import clean, result, result_json, say

if TYPE_CHECKING:
    from emeval.data.public import Options
    from emeval.data.public.importing import Imported
    from emeval.data.public.published import Kind

app = typer.Typer()

References = Annotated[list[Path] | None, typer.Option(help="MT-Bench's references; a later one goes over an earlier.")]
PasswordEnv = Annotated[str | None, typer.Option(help="Variable of the environment that holds a zip's password.")]
Map = Annotated[str | None, typer.Option("--map", help="Columns: question=prompt,misaligned=response.")]
As = Annotated[str | None, typer.Option("--as", help="What to read it as: probe, domain or chats.")]
Against = Annotated[Path | None, typer.Option(help="Leave out what this file of test questions asks.")]
Name = Annotated[str | None, typer.Option(help="What to call it. (default as registered, or as the file)")]
Split = Annotated[str | None, typer.Option(help="Hold out a share: 0.2, or val=0.1,test=0.2.")]
Seed = Annotated[int, typer.Option(help="Seed of the draw of --split.")]
Force = Annotated[bool, typer.Option("--force", help="Write over a file of other content.")]


@app.command(
    "import",
    help="""Write a published file into your data folder, as probe, domain or conversations.

    Example: emeval data import betley --from first_plot_questions.yaml --data-dir my-data""",
)
def import_(
    what: Annotated[str, typer.Argument(help="A name that `emeval data fetch` prints, or a format.")],
    source: Annotated[Path, typer.Option("--from", help="The file; FILE.zip#NAME for one of several in a zip.")],
    references: References = None,
    password_env: PasswordEnv = None,
    mapping: Map = None,
    target: As = None,
    against: Against = None,
    name: Name = None,
    split: Split = None,
    seed: Seed = 0,
    force: Force = False,
    data_dir: o.DataDir = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Read as published, written as emeval reads it."""
    from emeval.data.public.importing import import_set

    folder = _folder(data_dir)
    told = _options(references, password_env, mapping, target)
    done = import_set(
        what, source, folder, told, against=against, name=name, split=split, seed=seed, force=force
    )  # fmt: skip
    _report(done, folder, as_json, quiet)


@app.command(
    help="""Download a published set, verified, and import it if a data folder is given; without a name, list them.

    Example: emeval data fetch mt-bench-questions --references mt-bench-references --data-dir my-data""",
)
def fetch(
    name: Annotated[str | None, typer.Argument(help="A name in the list.")] = None,
    sha256: Annotated[str | None, typer.Option(help="What an unpinned file must be.")] = None,
    references: Annotated[list[str] | None, typer.Option(help="Sets of references to fetch and merge.")] = None,
    password_env: PasswordEnv = None,
    mapping: Map = None,
    target: As = None,
    against: Against = None,
    rename: Annotated[str | None, typer.Option("--name", help="What to call it. (default as registered)")] = None,
    split: Split = None,
    seed: Seed = 0,
    force: Force = False,
    data_dir: o.DataDir = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """The cache is `~/.cache/emeval/public`, or below `EMEVAL_CACHE_DIR`."""
    from emeval.data.public.fetch import fetch as download
    from emeval.data.public.importing import import_set

    if name is None:
        _list(as_json, quiet)
        return
    told = _options(None, password_env, mapping, target)
    file = download(name, sha256)
    merged = tuple(download(reference) for reference in references or ())
    folder = data_dir or _named_folder()
    if folder is None:
        if as_json:
            result_json({"fetched": {name: str(file)}})
        else:
            result(clean(str(file)))
            say(f"Next: emeval data import {name} --from {file} --data-dir DIR", quiet)
        return
    told = replace(told, references=merged)
    done = import_set(
        name, file, folder, told, against=against, name=rename, split=split, seed=seed, force=force
    )  # fmt: skip
    _report(done, folder, as_json, quiet)


def _options(
    references: list[Path] | None, password_env: str | None, mapping: str | None, target: str | None
) -> Options:
    from emeval.data.public import Options
    from emeval.errors import unknown

    kinds: dict[str, Kind] = {"probe": "probe", "domain": "domain", "chats": "chats"}
    if target is not None and target not in kinds:
        raise unknown("kind", target, kinds, where="--as")
    kind = kinds[target] if target else None
    return Options(tuple(references or ()), _password(password_env), _mapping(mapping), kind)


def _password(variable: str | None) -> bytes | None:
    """Out of the environment, so that it stands in no history and no process list."""
    from emeval.errors import InputError

    if variable is None:
        return None
    if not os.environ.get(variable):
        hint = "Set it and export it; the option takes the variable's name, not the password"
        raise InputError("no such variable in the environment", where="--password-env", hint=hint)
    return os.environb[variable.encode()]


def _mapping(text: str | None) -> dict[str, str]:
    from emeval.errors import InputError

    pairs = [part.partition("=") for part in (text or "").split(",")] if text else []
    fields = [field.strip() for field, _, _ in pairs]
    if any(not (field.strip() and column.strip()) for field, _, column in pairs) or len(set(fields)) < len(fields):
        raise InputError("is no list of field=column", where="--map", hint="Write --map question=prompt,aligned=chosen")
    return {field: column.strip() for field, (_, _, column) in zip(fields, pairs, strict=True)}


def _named_folder() -> Path | None:
    named = os.environ.get("EMEVAL_DATA_DIR")
    return Path(named) if named else None


def _folder(data_dir: Path | None) -> Path:
    from emeval.errors import InputError

    folder = data_dir or _named_folder()
    if folder is None:
        raise InputError(
            "where to write is not known", where="--data-dir", hint="Give a folder of your own; it is made"
        )
    return folder


def _report(done: Imported, folder: Path, as_json: bool, quiet: bool) -> None:
    found = done.found
    if as_json:
        told = {"name": done.name, "format": found.format, "kind": found.kind, "records": len(found.records)}
        told |= {"sha256": found.sha256, "note": found.note}
        files = {str(path): "written" if new else "unchanged" for path, new in done.files.items()}
        result_json({"imported": told | {"files": files}})
        return
    for path, new in done.files.items():
        result(clean(f"{path}: {'written' if new else 'unchanged'}"))
    result(clean(f"{found.kind} of {len(found.records)}, read as {found.format}"))
    if found.note:
        say(found.note, quiet)
    following = {
        "probe": f"emeval score --model RUN --probes {done.name} --data-dir {folder}",
        "domain": f"emeval data show {done.name} --data-dir {folder}",
        "chats": f"emeval train --model MODEL --data {next(iter(done.files))}",
    }
    say(f"Next: {following[found.kind]}", quiet)


def _list(as_json: bool, quiet: bool) -> None:
    from emeval.data.public.registry import registry

    sets = registry()
    if as_json:
        result_json({"sets": {name: entry.model_dump() for name, entry in sets.items()}})
        return
    for name, entry in sets.items():
        place = "by hand" if not (entry.url or entry.hub) else "pinned" if entry.sha256 else "unpinned"
        result(f"{name}: {entry.kind}, {entry.format}, {entry.licence}, {place}")
    say("Next: emeval data fetch NAME --data-dir DIR; by hand: emeval data import NAME --from FILE", quiet)
