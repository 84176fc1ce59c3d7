"""A training step on tensors without data: the very trainer, model code and optimiser, and the memory they would take.

No weights are read and nothing is computed: shapes alone run through the step (PyTorch's fake tensors), on any machine
and whatever the device will be.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from torch.optim import Optimizer
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from emeval import models
from emeval.errors import InputError
from emeval.models.load import first_line
from emeval.train.build import rows_per_process, trainer_of, trainer_settings
from emeval.train.ledger import Ledger, converting
from emeval.train.plan import Plan
from emeval.train.rows import IGNORED, TrainRow


@dataclass(frozen=True)
class Rehearsal:
    """What a process would hold at the fullest moment of a step: bytes, by kind."""

    weights: int
    initial: int
    """The frozen copy of the initial model, where the method keeps one."""
    gradients: int
    optimiser: int
    activations: int
    """What the way back needs of the forward."""
    workspace: int
    """All else: the loss's, the way back's, and the optimiser's own."""
    phase: str
    """When that moment is."""
    exchange: int
    """The gradients once more, which data-parallel processes keep to exchange; not held where there is one process."""
    shared_prefix: str
    """`yes`, or why the prefix is not run once for all rows."""

    @property
    def total(self) -> int:
        """All that is held then, but for the exchange."""
        kept = self.weights + self.initial + self.gradients + self.optimiser
        return kept + self.activations + self.workspace


@dataclass(frozen=True)
class Told:
    """What came of a rehearsal in another process."""

    step: Rehearsal | None = None
    refused: dict[str, Any] | None = None
    """What an InputError said."""
    failed: str = ""
    """The first line of any other error."""

    def read(self) -> Rehearsal | str:
        """The rehearsal, or why there is none. InputError for what was refused."""
        if self.refused is not None:
            raise InputError(**self.refused)
        return self.step or self.failed


def told_rehearsal(prepared: Plan, where: models.Placement, processes: int, largest: Largest) -> Told:
    """`rehearse`, its errors as values: they do not travel between processes as they are."""
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # what cannot run is told
    transformers_logging.set_verbosity_error()
    try:
        return Told(rehearse(prepared, where, processes, largest))
    except InputError as e:
        return Told(refused={"what": e.what, "where": e.where, "hint": e.hint})
    except Exception as e:
        return Told(failed=first_line(e)[:100])


def _reply(row: TrainRow) -> int:
    return sum(label != IGNORED for label in row.labels)


Largest = Literal["rows", "replies"]
_SIZES: dict[Largest, Callable[[TrainRow], int]] = {"rows": lambda row: len(row.input_ids), "replies": _reply}


def worth_rehearsing(prepared: Plan, where: models.Placement, processes: int) -> tuple[Largest, ...]:
    """Of which rows a step may hold the most: the longest; also those with the longest replies, if these are longer.

    Loss and KL take a vocabulary's width for every reply token, so rows of long replies may be fuller than longer ones.
    """
    micro, _ = rows_per_process(prepared.config, len(prepared.rows), where, processes)

    def replies(largest: Largest) -> int:
        size = _SIZES[largest]
        return sum(map(_reply, [*_most(prepared.rows, micro, size), *_most(prepared.retained, micro, size)]))

    return ("rows", "replies") if replies("replies") > 1.05 * replies("rows") else ("rows",)


def rehearse(prepared: Plan, where: models.Placement, processes: int, largest: Largest) -> Rehearsal:
    """Run an optimiser step of the largest rows. Once in a process: a second one has crashed in PyTorch.

    Raises:
        InputError: What `emeval train` would refuse once the model is there.
        Exception: Of any kind, where the model's code cannot run without data.
    """
    ledger, size = Ledger(), _SIZES[largest]
    with (
        tempfile.TemporaryDirectory(prefix="emeval-plan-") as folder,
        warnings.catch_warnings(),
        converting(),
        _as_on(where.device),
        ledger,
    ):
        # Copying a tensor without data looks at where its data is.
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        settings = trainer_settings(prepared.config, Path(folder), where, len(prepared.rows), processes)
        micro, forwards = settings["per_device_train_batch_size"], min(settings["gradient_accumulation_steps"], 2)
        eight_bit = settings["optim"] == "adamw_bnb_8bit"
        settings |= {
            "max_steps": 1,
            "gradient_accumulation_steps": forwards,  # from the second on the gradients are there already
            "optim": "adamw_torch",
            "use_cpu": True,
            "dataloader_pin_memory": False,
            "save_strategy": "no",
            "shared_prefix": settings["shared_prefix"] if processes == 1 else False,
        }
        ledger.kind = "weights"
        model = models.outline(prepared.source, where, ledger.fake)
        ledger.kind = "initial"
        rows, retained = _most(prepared.rows, micro, size) * forwards, _most(prepared.retained, micro, size)
        trainer = trainer_of(model, replace(prepared, rows=rows, retained=retained), settings)
        ledger.count_as("weights", [*trainer.model.parameters(), *trainer.model.buffers()])
        ledger.kind = "optimiser"
        _take_optimiser(trainer, foreach=where.device == "cuda", eight_bit=eight_bit)
        ledger.kind = "workspace"
        trainer._save_reference = lambda reference: None  # it has no data
        for p in trainer.model.parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(lambda p: ledger.count_as("gradients", [p.grad]))
        watch = _Watch(ledger)
        trainer.add_callback(watch)
        gc.collect()
        ledger.forget_peak()
        with ledger.counting_saved("activations"):
            trainer.train()
        kinds = ("weights", "initial", "gradients", "optimiser", "activations", "workspace")
        parts = {kind: watch.peak.get(kind, 0) for kind in kinds}
        exchange = sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)
        shared = "several processes" if processes > 1 else trainer.not_shared or "yes"
        return Rehearsal(**parts, phase=watch.phase, exchange=exchange, shared_prefix=shared)


def _most(rows: list[TrainRow], count: int, size: Callable[[TrainRow], int]) -> list[TrainRow]:
    """The `count` largest rows by this size, over again where there are fewer; none of none."""
    found = sorted(rows, key=lambda row: -size(row))[:count]
    return (found * count)[:count]


def _take_optimiser(trainer: Any, *, foreach: bool, eight_bit: bool) -> None:
    """Give the trainer its optimiser, with the state it has from the first step on."""
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    if eight_bit:
        trainer.optimizer = _EightBit(trained)
    else:
        trainer.create_optimizer()
        for group in trainer.optimizer.param_groups:
            group["foreach"] = foreach  # torch's own choice by device
    for p in trained:
        p.grad = torch.zeros_like(p)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


class _EightBit(Optimizer):
    """What bitsandbytes' 8-bit AdamW holds: two bytes a parameter and two scales a block of 256; small ones in fp32."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.0})

    def load_state_dict(self, state_dict: Any) -> None:
        """Nothing: torch would cast the bytes to the parameters' precision, which bitsandbytes does not."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make the state, the first time."""
        for p in self.param_groups[0]["params"]:
            if not self.state[p]:
                size = p.numel() * 2 + p.numel() // 32 if p.numel() >= 4096 else p.numel() * 8
                self.state[p]["held"] = p.new_empty(size, dtype=torch.uint8)


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Notes the fullest moment and the phase it falls into."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.peak: dict[str, int] = {}
        self.phase = ""

    def _end_of(self, phase: str) -> None:
        if self.ledger.peak.total() > sum(self.peak.values()):
            self.peak, self.phase = dict(self.ledger.peak), phase
        self.ledger.forget_peak()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Forward, way back and clipping are done."""
        self._end_of("forward and backward")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The weights have moved."""
        self._end_of("the optimiser's step")


@contextlib.contextmanager
def _as_on(device: str) -> Iterator[None]:
    """Let the step go the way that it goes on this device: on a GPU the loss in one buffer, by kernels that hold
    nothing."""
    if device != "cuda":
        yield
        return
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    from emeval.train.methods import shared_prefix

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(shared_prefix, "_device", lambda args: device))
        for room in (chunked_logprob, utils):
            stack.enter_context(mock.patch.object(room, "_use_triton", lambda device: True))
        # bf16 products are summed into fp32 there, without fp32 copies of what is multiplied.
        stack.enter_context(mock.patch.object(chunked_logprob, "_addmm_fp32", lambda acc, a, b: None))
        for name in ("_forward_kernel", "_backward_kernel"):
            stack.enter_context(mock.patch.object(chunked_logprob, name, _NoKernel()))
        stack.enter_context(mock.patch.object(chunked_logprob, "triton", mock.MagicMock(), create=True))
        yield


class _NoKernel:
    """Takes a grid, then anything, and keeps nothing: a mock would hold every buffer that it was called with."""

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: None
