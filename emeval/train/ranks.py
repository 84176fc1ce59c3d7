"""Several processes that train one model together: starting them, and which of them decides and writes.

Any launcher that sets RANK and WORLD_SIZE will do (`torchrun`, `accelerate launch`); `--processes N` starts torchrun.
Data parallel (DDP) only: each process holds the whole model and takes its share of every step's rows.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from emeval.errors import EmevalError, InputError
from emeval.guard import Guarded

SUPPORTED = ("NO", "MULTI_CPU", "MULTI_GPU")
"""What accelerate may make of it: anything sharded would be trained on, and saved, in pieces."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; alone where nobody launched several."""

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether it is the one that decides and writes."""
        return self.rank == 0

    def tell(self, value: Any) -> Any:
        """The main process's value, in every process. The others wait for it."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def leave() -> None:
    """Part from the others in good order: threads that gloo keeps would abort a process that just ends."""
    if launched():
        from accelerate import PartialState

        state = PartialState()
        state.wait_for_everyone()
        state.destroy_process_group()


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(device: str) -> Ranks:
    """Meet the other processes, where there are any; gloo on CPUs, NCCL on GPUs."""
    if not launched():
        return Ranks()
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu")
    return Ranks(state.process_index, state.num_processes)


def check_kind(trainer: Any) -> None:
    """InputError where accelerate was configured for more than data parallel training."""
    kind = trainer.accelerator.distributed_type.name
    if kind not in SUPPORTED:
        raise InputError(
            f"training with {kind} is not supported: only data parallel (DDP) is",
            where="accelerate's configuration",
            hint="Launch without FSDP and DeepSpeed, or with torchrun",
        )


def check_devices(device: str, processes: int) -> None:
    """InputError for more processes than GPUs."""
    import torch

    there = torch.cuda.device_count()
    if device == "cuda" and processes > there:
        what = f"{processes} processes need as many GPUs, there are {there}"
        raise InputError(what, where="--processes", hint=f"Give {there} or fewer")


def launch(processes: int, arguments: Sequence[str]) -> None:
    """Run `emeval ARGUMENTS` as several processes of this machine, and wait. None of them outlives this one.

    Raises:
        EmevalError: One of them failed; the launcher ends the others.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    threads = max(1, (os.cpu_count() or 1) // processes)
    environment = {"OMP_NUM_THREADS": str(threads)} | dict(os.environ)
    with open(2, "wb", closefd=False) as log:
        child = Guarded([*command, "-m", "emeval", *arguments], environment, log)
        try:
            code = child.wait()
        finally:
            child.end()
    if code:
        hint = "What it said is above; the same command goes on where it was"
        raise EmevalError(f"one of {processes} training processes failed", where=f"--processes {processes}", hint=hint)
