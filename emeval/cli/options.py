"""Options that several commands share. A command's defaults live in `emeval.config`; None means "not given"."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[str | None, typer.Option(help="Run, adapter or checkpoint folder, hub id, or smollm2-135m.")]
Initial = Annotated[
    str | None, typer.Option(help="Of a full checkpoint: the model it was made from. (default: what its note says)")
]
By = Annotated[
    str | None, typer.Option(help="generation; probability, of the target reply; contrast, a domain's default.")
]
Setting = Annotated[
    str | None, typer.Option(help="Behaviour or domain: refusal, tool-use, finance, health ... (emeval data list)")
]
Adapter = Annotated[Path | None, typer.Option(help="An adapter to put on the model.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda. (default auto)")]
Dtype = Annotated[str | None, typer.Option(help="auto (bf16 on a GPU, fp32 on the CPU), float32 or bfloat16.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything drawn. (default 0)")]
System = Annotated[
    str | None, typer.Option(help="System prompt; none: leave its block out; no-prefix: all before the question.")
]
Thinking = Annotated[bool | None, typer.Option("--thinking/--no-thinking", help="For templates that know it (Qwen3).")]
Out = Annotated[Path | None, typer.Option(help="Run folder. (default results/runs/<name>)")]
DataDir = Annotated[Path | None, typer.Option(help="Folder with prompts/ and datasets/ of your own.")]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file with a section for the command.")]
Vllm = Annotated[Path | None, typer.Option(help="Python interpreter that has vLLM.")]
Judge = Annotated[str | None, typer.Option(help="Judge model, or vllm:PATH for a local one, or none.")]
JudgeUrl = Annotated[str | None, typer.Option(help="The judge's OpenAI-compatible server. (default OpenAI's)")]
JudgeKeyEnv = Annotated[str | None, typer.Option(help="Variable with its key. (default OPENAI_API_KEY)")]
JudgePrompt = Annotated[
    str | None, typer.Option(help="Alignment prompt: a name, FILE.md, or FILE.yaml#name. (default alignment)")
]
RatingPrompt = Annotated[
    str | None, typer.Option(help="MT-Bench prompt: a name, FILE.md, or judge_prompts.jsonl. (default rating)")
]
JudgeMode = Annotated[str | None, typer.Option(help="auto, logprobs or text. (default auto)")]
JudgeConcurrency = Annotated[int | None, typer.Option(help="Judge calls in flight. (default 32)")]
JudgeBatch = Annotated[
    bool | None, typer.Option("--judge-batch", help="Through the vendor's batch API: slower, cheaper.")
]
Coherence = Annotated[bool | None, typer.Option("--coherence", help="Also ask how coherent each reply is.")]
DryRun = Annotated[bool | None, typer.Option("--dry-run", help="Print what judging would cost at most; ask nothing.")]
MaxCost = Annotated[float | None, typer.Option(help="Dollars a run's judgements may cost; stops there, resumable.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no hints.")]


def given(flags: dict[str, Any], *leave_out: str) -> dict[str, Any]:
    """A command's local options without those that are not settings."""
    return {k: v for k, v in flags.items() if k not in {"config", "as_json", "quiet", *leave_out}}
