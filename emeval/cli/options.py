"""Options that several commands share. A command's defaults live in `emeval.config`; None means "not given"."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[str | None, typer.Option(help="Run, adapter or checkpoint folder, hub id, or smollm2-135m.")]
Setting = Annotated[str | None, typer.Option(help="Behaviour: refusal, abstention, tool-use, or one of your own.")]
Adapter = Annotated[Path | None, typer.Option(help="An adapter to put on the model.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda. (default auto)")]
Dtype = Annotated[str | None, typer.Option(help="auto (bf16 on a GPU, fp32 on the CPU), float32 or bfloat16.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything drawn. (default 0)")]
System = Annotated[str | None, typer.Option(help="System prompt in place of the template's default.")]
Out = Annotated[Path | None, typer.Option(help="Run folder. (default results/runs/<name>)")]
DataDir = Annotated[Path | None, typer.Option(help="Folder with prompts/ and datasets/ of your own.")]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file with a section for the command.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no hints.")]


def given(flags: dict[str, Any], *leave_out: str) -> dict[str, Any]:
    """A command's local options without those that are not settings."""
    return {k: v for k, v in flags.items() if k not in {"config", "as_json", "quiet", *leave_out}}
