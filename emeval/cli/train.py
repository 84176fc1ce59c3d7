"""`emeval train`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emeval.cli import options as o
from emeval.cli.console import progress, result, result_json, say

if TYPE_CHECKING:
    from emeval.config import TrainConfig

app = typer.Typer()

_PENALTIES = {"kv_drift": "drift", "released_drift": "released drift", "kl": "KL"}


@app.command(
    help="""Finetune a model on one narrow behaviour. Running it again resumes it; a finished run answers at once.

    Example: emeval train --model smollm2-135m --setting refusal --method treft --lambda 30 --lr 1e-4 --rank 32
    --batch-size 8 --steps 20 --out results/runs/my-treft""",
)
def train(
    model: o.Model = None,
    setting: o.Setting = None,
    data: Annotated[Path | None, typer.Option(help="Chat JSONL to train on instead of a setting's rows.")] = None,
    method: Annotated[
        str | None, typer.Option(help="sft, interleave, treft, kl-train or kl-retain. (default sft)")
    ] = None,
    region: Annotated[
        str | None, typer.Option(help="What treft regularises: prefix, query, postfix, all. (default prefix)")
    ] = None,
    drift: Annotated[
        str | None, typer.Option(help="What treft measures: kv, or released, as the authors' code. (default kv)")
    ] = None,
    lambda_: Annotated[
        float | None, typer.Option("--lambda", help="Weight of the penalty. (default 10; kl 1, released 50)")
    ] = None,
    kl_norm: Annotated[
        str | None, typer.Option(help="With kl: token (mean over reply tokens) or released. (default token)")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="Gradients of loss and penalty: together, or each apart. (default together)")
    ] = None,
    full: Annotated[bool | None, typer.Option("--full", help="Finetune all weights instead of a LoRA adapter.")] = None,
    rank: Annotated[int | None, typer.Option(help="LoRA rank. (default 8)")] = None,
    alpha: Annotated[float | None, typer.Option(help="LoRA alpha; scale alpha/sqrt(rank). (default 2 x rank)")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate. (default 1e-5)")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data. (default 1)")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; overrides --epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per optimiser step. (default 16)")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Rows per forward; the rest is accumulated.")] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="Warm-up steps before the cosine. (default 5)")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay. (default 0.01)")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest row in tokens. (default 2048)")] = None,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = None,
    shared_prefix: Annotated[
        bool | None,
        typer.Option("--shared-prefix/--no-shared-prefix", help="Run the prefix once a batch. (default: where faster)"),
    ] = None,
    train_size: Annotated[int | None, typer.Option(help="Use only the first N rows.")] = None,
    mix_aligned: Annotated[
        float | None, typer.Option(help="Share of a domain's rows to answer well: noisy data. (default 0)")
    ] = None,
    retain: Annotated[
        str | None, typer.Option(help="With interleave, kl-retain: retain sets, by commas. (default all)")
    ] = None,
    retain_share: Annotated[
        float | None, typer.Option(help="With interleave: their share of the mixed data. (default 0.2)")
    ] = None,
    system: o.System = None,
    thinking: o.Thinking = None,
    drop_system: Annotated[
        bool | None, typer.Option("--drop-system", help="Leave out system messages of --data rows.")
    ] = None,
    checkpoints: Annotated[int | None, typer.Option(help="Models to keep along the run. (default 0)")] = None,
    seed: o.Seed = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    merge: Annotated[
        bool | None, typer.Option("--merge", help="Write base and adapter as one checkpoint too, in train/merged.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="Processes (GPUs) to train with, data parallel. (default 1)")
    ] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between resume points. (default a tenth)")] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Tell size, steps and memory of the run; load no weights, write nothing.")
    ] = False,
    out: o.Out = None,
    data_dir: o.DataDir = None,
    config: o.Config = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Resolve the settings, train, and say where the model is; or with `--plan` what that would take."""
    flags = o.given(locals(), "plan")

    from emeval.config import TrainConfig

    settings = TrainConfig.load(flags, config)
    if plan:
        from emeval.cli.forecast import tell_forecast

        tell_forecast(settings, as_json)
        return
    from emeval.train.plan import run_path
    from emeval.train.ranks import launch, launched, leave
    from emeval.train.run import finished
    from emeval.train.run import train as run_training

    if settings.processes > 1 and not launched():
        if not finished(settings):  # what is wrong with the input is told once, here
            launch(settings.processes, sys.argv[1:])
        _tell(run_path(settings), settings, as_json, quiet)
        return
    with progress(f"train {settings.method}", quiet or os.environ.get("RANK", "0") != "0") as advance:

        def on_step(step: int, total: int, logs: dict[str, float]) -> None:
            drift = "".join(f" {name} {logs[key]:.2g}" for key, name in _PENALTIES.items() if key in logs)
            advance(step, total, f"loss {logs['loss']:.3f}{drift}")

        path = run_training(settings, on_step)
    leave()
    if not launched():  # else who launched them tells
        _tell(path, settings, as_json, quiet)


def _tell(path: Path, settings: TrainConfig, as_json: bool, quiet: bool) -> None:
    from emeval.store import Run

    results = Run(path).manifest()["train"]["results"]
    if as_json:
        result_json({"run": str(path), "results": results})
    else:
        drift = f", drift {results['kv_drift']['total']:.3g}" if results["kv_drift"] else ""
        result(f"{path}: {results['steps']} steps, loss {results['loss']:.3f}{drift}, {results['wall_seconds']} s")
    if settings.shared_prefix and results["shared_prefix"] != "yes":
        say(f"The prefix was run in every row, not once a batch: {results['shared_prefix']}", quiet or as_json)
    along = " --checkpoints" if settings.checkpoints else ""
    say(f"Next: emeval score --model {path}{along}", quiet or as_json)
