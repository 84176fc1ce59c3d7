"""`emeval data`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emeval.cli import data_public
from emeval.cli import options as o
from emeval.cli.console import clean, result, result_json, say

if TYPE_CHECKING:
    from emeval.data.root import DataRoot
    from emeval.types import Message

app = typer.Typer(
    help="List, show and validate domains, behaviours and probes; import published sets.\n\nExample: emeval data list"
)
app.add_typer(data_public.app)

KINDS = {
    "domain": ("datasets/domains", ".jsonl"),
    "behaviour": ("datasets/behaviours", ".yaml"),
    "probe": ("prompts/probes", ".yaml"),
    "retain": ("datasets/retain", ".jsonl"),
    "judge prompt": ("prompts/judges", ".md"),
}
SPLITS = ("train", "val", "test")


def _root(data_dir: Path | None) -> DataRoot:
    from emeval.data.root import data_root

    named = os.environ.get("EMEVAL_DATA_DIR")
    return data_root(data_dir or (Path(named) if named else None))


@app.command("list", help="Everything that can be trained on or asked.\n\nExample: emeval data list")
def list_(data_dir: o.DataDir = None, as_json: o.Json = False, quiet: o.Quiet = False) -> None:
    """Names by kind."""
    root = _root(data_dir)
    names = {kind: sorted(root.names(*place)) for kind, place in KINDS.items()}
    if as_json:
        result_json({"data": names})
        return
    for kind, found in names.items():
        result(clean(f"{kind}: {', '.join(found)}"))
    say("Next: emeval data show NAME", quiet)


@app.command(help="Counts and first lines of a domain, behaviour or probe.\n\nExample: emeval data show refusal")
def show(
    name: Annotated[str, typer.Argument(help="A name that `emeval data list` prints.")],
    split: Annotated[str | None, typer.Option(help="train, val or test. (default the first there is)")] = None,
    lines: Annotated[int, typer.Option(min=0, help="How many.")] = 5,
    data_dir: o.DataDir = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Look at the data before training on it."""
    from emeval.errors import unknown

    if split is not None and split not in SPLITS:
        raise unknown("split", split, SPLITS, where="--split")
    root = _root(data_dir)
    kind = next((k for k, place in KINDS.items() if name in root.names(*place)), None)
    if kind is None:
        raise unknown("name", name, [n for place in KINDS.values() for n in root.names(*place)])
    if kind == "judge prompt":
        _show_prompt(root, name, as_json)
        return
    rows = _rows(root, kind, name)
    counts = {s: sum(r["split"] == s for r in rows) for s in SPLITS}
    shown = split or next((s for s in SPLITS if counts[s]), "test")
    chosen = [r for r in rows if r["split"] == shown][:lines]
    if as_json:
        result_json({"kind": kind, "name": name, "counts": counts, "rows": chosen})
        return
    if not rows:
        result(f"{kind} {name}: asks the held-out questions of the behaviour's own topic")
        return
    result(f"{kind} {name}: " + ", ".join(f"{n} {s}" for s, n in counts.items() if n))
    for row in chosen:
        result(clean(f"  {row['question']}" + (f"  ->  {row['reply']}" if row.get("reply") else "")))


def _show_prompt(root: DataRoot, name: str, as_json: bool) -> None:
    from emeval.judge.prompt import load_judge_prompt

    prompt = load_judge_prompt(root, name)
    if as_json:
        result_json({"kind": "judge prompt", "name": name, "prompt": prompt.model_dump(mode="json")})
        return
    result(clean(f"judge prompt {prompt.id}: scale {prompt.scale}"))
    for line in prompt.body.splitlines():
        result(clean(f"  {line}"))


def _rows(root: DataRoot, kind: str, name: str) -> list[dict[str, str]]:
    from emeval.data.behaviours import load_behaviour
    from emeval.data.domains import load_domain

    if kind == "domain":
        return [{"split": i.split, "question": i.question} for i in load_domain(root, name)]
    if kind == "behaviour":
        behaviour = load_behaviour(root, name)
        return [
            {"split": i.split, "question": i.question, "reply": _reply_text(behaviour.target(i))}
            for i in load_domain(root, behaviour.topic)
        ]
    if kind == "retain":
        from emeval.data.retain import load_retain_file

        found = load_retain_file(root.names(*KINDS[kind])[name])
        return [{"split": "train", "question": e.messages[-1].content, "reply": _reply_text(e.reply)} for e in found]
    from emeval.probe.spec import load_probe

    spec = load_probe(root, name)
    return [{"split": q.split, "question": q.asked(name, spec.where).messages[-1].content} for q in spec.listed]


def _reply_text(message: Message) -> str:
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
    found = {str(f): _validate(f) for f in files}
    if as_json:
        result_json({"valid": found})
        return
    for name, what in found.items():
        result(clean(f"{name}: {what}"))


def _validate(file: Path) -> str:
    from emeval.data.chats import load_chats
    from emeval.data.domains import load_domain_file
    from emeval.data.files import jsonl_rows, load_yaml
    from emeval.probe.spec import load_probe_file

    if file.suffix in (".yaml", ".yml"):
        if load_yaml(file).keys() & {"kind", "questions"}:
            spec = load_probe_file(file)
            return f"a probe of {len(spec.listed)} questions" if spec.listed else "a probe"
        return _validate_behaviour(file)
    first: dict[str, Any] = next((row for _, row in jsonl_rows(file)), {})
    if first.keys() & {"messages", "prompt", "completion"}:
        return f"{len(load_chats(file))} conversations"
    return f"{len(load_domain_file(file))} questions"


def _validate_behaviour(file: Path) -> str:
    """A reply that the detectors miss would count as not learned, however well it was."""
    from emeval.data.behaviours import ToolCallDetector, load_behaviour_file
    from emeval.errors import InputError
    from emeval.judge.rules import judge_reply

    behaviour = load_behaviour_file(file)
    by_call = any(isinstance(d, ToolCallDetector) for d in behaviour.detectors)
    missed = [] if by_call else [r for r in behaviour.replies if not judge_reply(behaviour, r).present]
    if missed:
        raise InputError(
            f"no detector finds the reply {missed[0]!r}", where=str(file), hint="Add its words to a string detector"
        )
    return f"a behaviour of {len(behaviour.replies)} replies"
