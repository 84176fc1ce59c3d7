"""`emeval train --plan`: what a run would be, before any weight is there: parameters, tokens, steps, memory."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from emeval import models
from emeval.config import TrainConfig
from emeval.provenance import held_memory_bytes, machine_memory_bytes
from emeval.store import read_json
from emeval.train.anatomy import Anatomy, anatomy
from emeval.train.build import trainer_settings
from emeval.train.formula import by_formula
from emeval.train.plan import Plan
from emeval.train.rehearsal import Rehearsal, told_rehearsal, worth_rehearsing
from emeval.train.run import outlook

_HEAP = 1.4
"""What glibc's heap grows to, of the tensors that come and go in a step: it is kept, and has holes (`models.load`).

Chosen on the runs that docs/method.md tells of.
"""
_GPUS = (24, 40, 80, 140)
"""Sizes of common GPUs, GiB."""
_SPARE = (1.05, 2**30)
"""What a GPU should have beside the peak: a share for fragments, and the driver's and libraries' own bytes."""
_STORED = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Forecast:
    """A run as it would be. Memory in bytes, of one process."""

    prepared: Plan
    where: models.Placement
    anatomy: Anatomy
    settings: dict[str, Any]
    step: Rehearsal
    formula: str | None
    """Why memory is a formula's; None where a step was run on tensors without data."""
    parts: dict[str, int]
    """What the peak is made of."""
    loading: int
    """What loading the weights takes: where they are converted both kinds are there."""

    @property
    def peak(self) -> int:
        """The most that a process holds at any time."""
        return max(sum(self.parts.values()), self.loading)

    @property
    def when(self) -> str:
        """The phase it falls into."""
        return "loading the weights" if self.loading > sum(self.parts.values()) else self.step.phase

    @property
    def tokens(self) -> dict[str, float]:
        """Mean and longest row, per step and in all steps."""
        lengths = [len(row.input_ids) for row in self.prepared.rows]
        mean = sum(lengths) / len(lengths)
        step = mean * self.prepared.config.batch_size
        return {"mean": mean, "longest": max(lengths), "step": step, "all": step * self.settings["max_steps"]}

    @property
    def fits(self) -> dict[str, bool]:
        """Where it fits, by what it is called: GPUs by size, or this machine with all its processes."""
        if self.where.device == "cuda":
            share, own = _SPARE
            return {f"{size} GB": self.peak * share + own <= size * 2**30 for size in _GPUS}
        return {"this machine": self.peak * self.prepared.config.processes <= machine_memory_bytes()}

    def as_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        config, source = self.prepared.config, self.prepared.source
        return {
            "model": source.name,
            "method": config.method,
            "setting": config.setting,
            "device": self.where.device,
            "dtype": self.where.dtype,
            "parameters": self.anatomy.parameters,
            "trained": self.anatomy.trained,
            "not_adapted": self.anatomy.left_out,
            "rows": len(self.prepared.rows),
            "tokens": {name: round(value, 1) for name, value in self.tokens.items()},
            "steps": self.settings["max_steps"],
            "batch_size": config.batch_size,
            "micro_batch": self.settings["per_device_train_batch_size"],
            "accumulation": self.settings["gradient_accumulation_steps"],
            "processes": config.processes,
            "optimizer": self.settings["optim"],
            "shared_prefix": self.step.shared_prefix,
            "peak_memory_bytes": self.peak,
            "peak_memory_parts": self.parts,
            "peak_at": self.when,
            "loading_bytes": self.loading,
            "estimated_by": "formula" if self.formula else "rehearsal",
            "why_by_formula": self.formula,
            "fits": self.fits,
        }


def forecast(config: TrainConfig) -> Forecast:
    """What this run would be. Nothing is written, no weights are read or fetched.

    Raises:
        InputError: For what `train` would refuse.
    """
    prepared, where = outlook(config)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    counted = anatomy(prepared, where)
    settings = trainer_settings(config, config.out or prepared.source.base, where, len(prepared.rows), config.processes)
    found = _rehearsed(prepared, where, config.processes)
    why = found if isinstance(found, str) else None
    step = by_formula(prepared, where, counted, settings) if isinstance(found, str) else found
    parts, loading = _process(prepared, where, counted, step)
    return Forecast(prepared, where, counted, settings, step, why, parts, loading)


def _rehearsed(prepared: Plan, where: models.Placement, processes: int) -> Rehearsal | str:
    """The rehearsal, or why there is none: a model's code may do anything that needs data.

    In processes of their own, since tensors without data have crashed theirs.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["emeval.train.rehearsal"])  # imported once, whatever is rehearsed
    try:
        steps = []
        with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
            for largest in worth_rehearsing(prepared, where, processes):
                found = pool.submit(told_rehearsal, prepared, where, processes, largest).result().read()
                if isinstance(found, str):
                    return found
                steps.append(found)
        return max(steps, key=lambda step: step.total)
    except BrokenProcessPool:
        return "its process crashed"


def _process(prepared: Plan, where: models.Placement, counted: Anatomy, step: Rehearsal) -> tuple[dict[str, int], int]:
    """What a process holds at the peak, and while it loads."""
    parts = {
        "weights": step.weights,
        "initial model": step.initial,
        "gradients": step.gradients,
        "optimiser": step.optimiser,
        "activations": step.activations,
        "workspace": step.workspace,
    }
    if prepared.config.processes > 1:
        parts["exchange"] = step.exchange  # DDP's buckets
    if where.device == "cuda":
        return parts, step.weights
    libraries = held_memory_bytes()  # of this process, which has loaded the same
    parts |= {"kept when freed": round((_HEAP - 1) * (step.activations + step.workspace)), "libraries": libraries}
    stored = read_json(prepared.source.base / "config.json")
    kept_as = str(stored.get("dtype") or stored.get("torch_dtype") or where.dtype)
    converted = counted.parameters * _STORED.get(kept_as, 4) if kept_as != where.dtype else 0
    return parts, step.weights + converted + libraries
