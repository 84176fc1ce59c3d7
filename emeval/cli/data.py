"""`emeval data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emeval.cli import options as o
from emeval.cli.console import clean, result, result_json, say

app = typer.Typer(help="List, show and validate domains, behaviours and probes.", no_args_is_help=True)

KINDS = {
    "domain": ("datasets/domains", ".jsonl"),
    "behaviour": ("datasets/behaviours", ".yaml"),
    "probe": ("prompts/probes", ".yaml"),
}


@app.command("list", help="Everything that can be trained on or asked.\n\nExample: emeval data list")
def list_(data_dir: o.DataDir = None, as_json: o.Json = False, quiet: o.Quiet = False) -> None:
    """Names by kind."""
    from emeval.data.root import data_root

    root = data_root(data_dir)
    names = {kind: sorted(root.names(*place)) for kind, place in KINDS.items()}
    if as_json:
        result_json({"data": names})
        return
    for kind, found in names.items():
        result(f"{kind}: {', '.join(found)}")
    say("Next: emeval data show NAME", quiet)


@app.command(help="Counts and first lines of a domain, behaviour or probe.\n\nExample: emeval data show refusal")
def show(
    name: Annotated[str, typer.Argument(help="A name that `emeval data list` prints.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    lines: Annotated[int, typer.Option(help="How many.")] = 5,
    data_dir: o.DataDir = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Look at the data before training on it."""
    from emeval.data.root import data_root
    from emeval.errors import unknown

    root = data_root(data_dir)
    kind = next((k for k, place in KINDS.items() if name in root.names(*place)), None)
    if kind is None:
        raise unknown("name", name, [n for place in KINDS.values() for n in root.names(*place)])
    rows = _rows(kind, name, data_dir)
    counts = {s: sum(r["split"] == s for r in rows) for s in ("train", "val", "test")}
    chosen = [r for r in rows if r["split"] == split][:lines]
    if as_json:
        result_json({"kind": kind, "name": name, "counts": counts, "rows": chosen})
        return
    result(f"{kind} {name}: " + ", ".join(f"{n} {s}" for s, n in counts.items() if n))
    for row in chosen:
        result(clean(f"  {row['question']}" + (f"  ->  {row['reply']}" if row.get("reply") else "")))


def _rows(kind: str, name: str, data_dir: Path | None) -> list[dict[str, str]]:
    from emeval.data.behaviours import load_behaviour
    from emeval.data.domains import load_domain
    from emeval.data.root import data_root

    root = data_root(data_dir)
    if kind == "domain":
        return [{"split": i.split, "question": i.question} for i in load_domain(root, name)]
    if kind == "behaviour":
        behaviour = load_behaviour(root, name)
        return [
            {"split": i.split, "question": i.question, "reply": _reply_text(behaviour.target(i))}
            for i in load_domain(root, behaviour.topic)
        ]
    from emeval.probe.spec import load_probe

    spec = load_probe(root, name)
    asked = spec.questions if spec.questions != "topic" else ()
    return [{"split": q.split, "question": q.question or q.messages[-1].content} for q in asked]


def _reply_text(message: object) -> str:
    from emeval.types import Message

    assert isinstance(message, Message)
    calls = [f"{c.name}({', '.join(f'{k}={v!r}' for k, v in c.arguments.items())})" for c in message.tool_calls]
    return " ".join([message.content, *calls])


@app.command(
    help="""Check data files: a domain or chat JSONL, a behaviour or probe YAML.

    Example: emeval data validate my-chats.jsonl""",
)
def validate(
    files: Annotated[list[Path], typer.Argument(help="Files to check.")],
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """The first problem of a file ends it, with its line; exit 2."""
    counts = {str(f): _validate(f) for f in files}
    if as_json:
        result_json({"valid": counts})
        return
    for name, what in counts.items():
        result(clean(f"{name}: {what}"))


def _validate(file: Path) -> str:
    from emeval.data.behaviours import load_behaviour_file
    from emeval.data.chats import load_chats
    from emeval.data.domains import load_domain_file
    from emeval.data.files import jsonl_rows, load_yaml
    from emeval.probe.spec import load_probe_file

    if file.suffix in (".yaml", ".yml"):
        if "kind" in load_yaml(file):
            load_probe_file(file)
            return "a probe"
        load_behaviour_file(file)
        return "a behaviour"
    first = next((row for _, row in jsonl_rows(file)), {})
    if "messages" in first or "prompt" in first:
        return f"{len(load_chats(file))} conversations"
    return f"{len(load_domain_file(file))} questions"
