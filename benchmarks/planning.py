"""What `emeval train --plan` says a run takes, over what the run then took at its peak, one process each.

    .venv/bin/python -m benchmarks.planning [MODEL ...] [--device cuda] [--workers 4]
    .venv/bin/python -m benchmarks.planning --of results/gpu/study/refusal-*-kl-*-seed0   # planned here, run there

Prints Markdown. A model is a local folder, or the bundled one; the rows are refusal's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

RUNS: dict[str, list[str]] = {
    "SFT": ["--method", "sft"],
    "SFT, micro-batches of 2": ["--method", "sft", "--micro-batch", "2"],
    "SFT, gradient checkpointing": ["--method", "sft", "--gradient-checkpointing"],
    "SFT, every row whole": ["--method", "sft", "--no-shared-prefix"],
    "TReFT, prefix": ["--method", "treft"],
    "TReFT, query": ["--method", "treft", "--region", "query"],
    "TReFT, all": ["--method", "treft", "--region", "all"],
    "kl-train": ["--method", "kl-train"],
    "kl-retain": ["--method", "kl-retain"],
    "full, SFT": ["--method", "sft", "--full"],
    "full, TReFT, prefix": ["--method", "treft", "--full"],
    "full, kl-train": ["--method", "kl-train", "--full"],
}


def told(arguments: list[str]) -> dict[str, Any]:
    """What the command prints with --json."""
    command = [sys.executable, "-m", "emeval", "train", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def compared(model: str, dtype: str, device: str, changes: list[str]) -> tuple[int, int, str]:
    """Bytes planned and taken at the peak, and how the plan came by them."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        common = ["--model", model, "--setting", "refusal", "--steps", "4", "--batch-size", "8", "--device", device]
        common += ["--micro-batch", "8"] if "--micro-batch" not in changes else []
        common += ["--dtype", dtype, "--out", str(run), *changes]
        plan = told([*common, "--plan"])["plan"]
        told(common)
        taken = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["train"]["results"]
        return plan["peak_memory_bytes"], taken["peak_memory_bytes"], plan["estimated_by"]


def planned_again(folder: Path) -> tuple[str, str, int, int, str]:
    """Of a run that is kept: what it was, bytes planned now for its settings, and taken then.

    Runs of before peaks began anew with each training have no `step_seconds`: theirs may be an earlier one's.
    """
    from emeval.config import TrainConfig
    from emeval.train.forecast import forecast

    then = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["train"]
    if not then["results"].get("step_seconds"):
        raise SystemExit(f"{folder}: its peak may be an earlier run's, in the same process")
    # Only what was asked for: defaults of another method's options would be refused.
    usual = {field.alias or name: field.default for name, field in TrainConfig.model_fields.items()}
    settings = {k: v for k, v in then["resolved"].items() if k in usual and v not in (usual[k], [])}
    settings["model"] = then["resolved"]["model"]
    settings |= {"device": then["device"], "dtype": then["dtype"], "out": Path(tempfile.gettempdir()) / folder.name}
    shared = then["results"]["shared_prefix"]
    settings |= {"shared_prefix": shared == "yes"} if shared in ("yes", "switched off") else {}
    found = forecast(TrainConfig.model_validate(settings))
    by = "formula" if found.formula else "rehearsal"
    return settings["model"], then["dtype"], found.peak, then["results"]["peak_memory_bytes"], by


def line(model: str, dtype: str, name: str, planned: int, taken: int, by: str) -> None:
    """A row of the table."""
    name += ", by formula" if by == "formula" else ""
    sizes = f"{planned / 2**30:.2f} | {taken / 2**30:.2f} | {planned / taken:.2f}"
    print(f"| {Path(model).name} | {dtype} | {name} | {sizes} |", flush=True)


def main() -> None:
    """All comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["smollm2-135m"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--workers", type=int, default=1, help="comparisons at a time")
    parser.add_argument("--of", type=Path, nargs="+", default=[], help="finished runs, kept from anywhere")
    given = parser.parse_args()
    runs = [(model, dtype, name) for model in given.models for dtype in given.dtype for name in RUNS]
    print("| model | dtype | run | planned, GiB | taken, GiB | planned / taken |\n|---|---|---|---|---|---|")
    if given.of:
        for folder in given.of:
            model, dtype, planned, taken, by = planned_again(folder)
            line(model, dtype, folder.name, planned, taken, by)
        return
    with ThreadPoolExecutor(given.workers) as pool:
        found = pool.map(lambda run: compared(run[0], run[1], given.device, RUNS[run[2]]), runs)
        for (model, dtype, name), (planned, taken, by) in zip(runs, found, strict=True):
            line(model, dtype, name, planned, taken, by)


if __name__ == "__main__":
    main()
