"""What a step of each regulariser costs, side by side: seconds and peak memory over plain SFT's. Prints Markdown.

    .venv/bin/python benchmarks/regularisers.py [--device cuda] [--rounds 9]

Every arm is `emeval train`'s own trainer on the same eight refusal rows; `make bench` has this as a part of its page.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it
ARMS: dict[str, dict[str, Any]] = {
    "SFT (plain TRL)": {"method": "sft", "shared_prefix": False},
    "SFT, shared prefix": {"method": "sft", "shared_prefix": True},
    "TReFT, prefix": {"method": "treft", "shared_prefix": False},
    "TReFT, prefix, shared": {"method": "treft", "shared_prefix": True},
    "TReFT, postfix": {"method": "treft", "region": "postfix"},
    "TReFT, query": {"method": "treft", "region": "query"},
    "TReFT, all": {"method": "treft", "region": "all"},
    "kl-train": {"method": "kl-train"},
    "kl-retain": {"method": "kl-retain"},
}
BASE = next(iter(ARMS))
ROWS = 8


def made(arm: str, device: str) -> tuple[Any, Any]:
    """A trainer as `emeval train` makes it, and its first batch."""
    from emeval import models
    from emeval.config import TrainConfig
    from emeval.train.build import trainer_of, trainer_settings
    from emeval.train.plan import plan

    folder = Path(tempfile.gettempdir()) / "emeval-regularisers"  # named, not written: no step is taken
    settings = {"model": models.DEMO_MODEL, "setting": "refusal", "rank": 32, "batch_size": ROWS, "micro_batch": ROWS}
    settings |= {"steps": 100, "device": device, "dtype": "float32", "out": folder}
    prepared = plan(TrainConfig.model_validate(settings | ARMS[arm]))
    where = models.placement(device, "float32")
    arguments = trainer_settings(prepared.config, folder, where, len(prepared.rows), 1)
    trainer = trainer_of(models.load_model(prepared.source, where, trainable=True), prepared, arguments)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    return trainer, batch


def step(trainer: Any, batch: Any) -> float:
    """Seconds of a forward and a backward, the penalty's or the KL's included."""
    import torch

    items = (batch["labels"][:, 1:] != -100).sum()
    trainer.model.zero_grad()
    if batch["labels"].is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    # A step empties what it is given.
    trainer.training_step(trainer.model, dict(batch), items)
    if batch["labels"].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_bytes(act: Callable[[], object], device: str = "cpu") -> int:
    """Peak bytes of this process while it acts; on CUDA, of its tensors. What it did before is no part of it."""
    import torch

    from emeval.provenance import peak_memory_bytes, reset_peak_memory

    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        act()
        return int(torch.cuda.max_memory_allocated())
    # Loading the weights takes more than a step does, and the allocator keeps it.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    reset_peak_memory()
    act()
    return peak_memory_bytes()


def own_peak(arm: str, device: str) -> int:
    """Of one arm's step after the first."""
    trainer, batch = made(arm, device)
    step(trainer, batch)
    return peak_bytes(lambda: step(trainer, batch), device)


def peak(arm: str, device: str) -> int:
    """On the CPU in a process of its own, the median of three, since an allocator's holes differ."""
    if device == "cuda":  # its tensors are counted one by one
        return own_peak(arm, device)
    command = [sys.executable, __file__, "--memory-of", arm]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3)]
    return int(statistics.median(int(run.stdout.split()[-1]) for run in runs))


def section(rounds: int, device: str) -> Iterator[str]:
    """The part of the page, all arms taking turns."""
    from run import over, table

    memory = {arm: peak(arm, device) for arm in ARMS}  # first: on CUDA all that is held counts
    arms = {arm: made(arm, device) for arm in ARMS}
    for arm in ARMS:
        step(*arms[arm])  # takes the reference and warms up
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for number in range(rounds):
        first = number % len(ARMS)  # who comes first changes
        for arm in [*ARMS][first:] + [*ARMS][:first]:
            times[arm].append(step(*arms[arm]))
    width = {tuple(batch["input_ids"].shape) for _, batch in arms.values()}
    shapes = ", ".join(f"{rows} x {tokens}" for rows, tokens in sorted(width))
    yield (
        f"## A step of every regulariser\n\nSmolLM2-135M, LoRA rank 32, fp32, {device}, refusal, batches of {shapes} "
        f"tokens; {rounds} rounds. KL methods as by default; kl-retain runs a batch of retain rows besides."
    )
    head = ["arm", "step time / plain SFT (range)", "seconds, median", "peak memory / plain SFT", "GiB"]
    rows = []
    for arm, found in times.items():
        sizes = [f"{memory[arm] / memory[BASE]:.2f}", f"{memory[arm] / 2**30:.2f}"]
        rows.append([arm, over(found, times[BASE]), f"{statistics.median(found):.3f}", *sizes])
    yield table(head, rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        print(own_peak(given.memory_of, given.device))
        return
    for part in section(given.rounds, given.device):
        print(part, end="\n\n", flush=True)


if __name__ == "__main__":
    main()
