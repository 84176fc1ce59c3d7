"""What a training run keeps on disk: its log, its resume points, its model, and models along the way."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainerCallback

from emeval import models
from emeval.errors import InputError
from emeval.provenance import facts
from emeval.store import Run, reported, sha256_of, write_atomic
from emeval.train.card import write_card
from emeval.train.plan import Plan
from emeval.train.ranks import Ranks

OnStep = Callable[[int, int, dict[str, float]], None]
"""Called after each optimiser step with: step, total steps, the step's log."""

_TIMED = 3
"""Steps that a median needs."""
_WHOLE = "emeval-whole"
"""Marker file of a resume point, written after everything else of it."""
_NOT_WRITTEN = re.compile(r"PytorchStreamWriter|unexpected pos \d+ vs")
"""How torch says that a file could not be written; it does not say why."""


@contextlib.contextmanager
def saving(folder: Path) -> Iterator[None]:
    """`store.reported`, also where a library tells of a full disk by an error of its own."""
    with reported(folder):
        try:
            yield
        except (SafetensorError, RuntimeError) as e:
            told = re.search(r"os error (\d+)", str(e))
            if not told and not _NOT_WRITTEN.search(str(e)):
                raise
            number = int(told[1]) if told else errno.ENOSPC
            raise OSError(number, os.strerror(number)) from e


def newest_checkpoint(folder: Path, last_step: int) -> Path | None:
    """The newest checkpoint that was saved whole before the last step; half-saved ones are removed, and later ones.

    From one at the last step transformers would take a step too many, unless an epoch ends there.
    """
    usable = []
    for path in folder.glob("checkpoint-*"):
        if (path / _WHOLE).is_file() and _step(path) < last_step:
            usable.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return max(usable, key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def drop_resume_points(run: Run) -> None:
    """Once the model is saved nothing is resumed from them."""
    for leftover in run.train_dir.glob("checkpoint-*"):
        shutil.rmtree(leftover, ignore_errors=True)


class SavedByAll(TrainerCallback):  # type: ignore[misc]
    """Holds every process until all have written their part of a resume point; the Recorder's mark comes after."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """This process has written its part."""
        self.ranks.wait()


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Writes `train/log.jsonl` (a line a step), marks resume points as whole, keeps models along the way.

    On resume the log is written anew up to the resume point, from what the point itself knows: later steps run again,
    and an earlier line may have gone with the power.

    Args:
        prepared: The plan.
        run: Its folder.
        resume: The resume point that training goes on from.
        on_step: Told of every step.
    """

    def __init__(self, prepared: Plan, run: Run, resume: Path | None, on_step: OnStep | None) -> None:
        self.prepared, self.run, self.on_step_done = prepared, run, on_step
        self.path = run.train_dir / "log.jsonl"
        self.resumed_at = _step(resume) if resume else None
        self._began = 0.0
        self._seconds: list[float] = []
        self.steps_done = 0
        with reported(run.train_dir):
            run.train_dir.mkdir(parents=True, exist_ok=True)
        self.lines = _logged(resume) if resume else []
        write_atomic(self.path, "".join(json.dumps(entry) + "\n" for entry in self.lines))

    def last(self, name: str) -> float | None:
        """The newest value logged under `name`."""
        return next((e[name] for e in reversed(self.lines) if name in e), None)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """A step was taken."""
        if not logs or "loss" not in logs:
            return
        entry = _entry(state.global_step, logs)
        self.lines.append(entry)
        self.steps_done += 1
        with reported(self.path), self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(entry) + "\n")
        if self.on_step_done:
            self.on_step_done(state.global_step, state.max_steps, logs)

    @property
    def step_seconds(self) -> float | None:
        """Median of this process's steps, saving apart and without the first, which warms up; None of too few."""
        known = self._seconds[1:]
        return round(statistics.median(known), 4) if len(known) >= _TIMED else None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The clock starts."""
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Keep the model where `--checkpoints` asks for it."""
        self._seconds.append(time.perf_counter() - self._began)
        if state.global_step in kept_steps(state.max_steps, self.prepared.config.checkpoints):
            save_model(model, self.prepared, self.run, step=state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Everything of the resume point is written by now."""
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _WHOLE).touch()


def _logged(resume: Path) -> list[dict[str, Any]]:
    state = json.loads((resume / "trainer_state.json").read_text(encoding="utf-8"))
    return [_entry(logs["step"], logs) for logs in state["log_history"] if "loss" in logs]


def _entry(step: int, logs: dict[str, Any]) -> dict[str, Any]:
    """A line of the log."""
    return {"step": step} | {k: v for k, v in logs.items() if isinstance(v, int | float)}


def kept_steps(total: int, checkpoints: int) -> set[int]:
    """The steps after which a model is kept: `checkpoints` of them, evenly spaced, the last one among them."""
    return {round(total * i / checkpoints) for i in range(1, checkpoints + 1)} - {0} if checkpoints else set()


def step_dir(train_dir: Path, step: int) -> Path:
    """Where the model after `step` steps is kept."""
    return train_dir / "steps" / f"{step:06d}"


def save_model(model: Any, prepared: Plan, run: Run, step: int | None = None) -> None:
    """The model, whole or not at all: `train/adapter/`, `train/checkpoint/`, or for a step `train/steps/NNNNNN/`."""
    config = prepared.config
    final = run.train_dir / ("checkpoint" if config.full else "adapter")
    if step is not None:
        final = step_dir(run.train_dir, step)
    aside = run.train_dir / f".{final.name}.part"
    with saving(run.train_dir):
        shutil.rmtree(aside, ignore_errors=True)
        model.save_pretrained(aside)
        if config.full:
            prepared.tokenizer.save_pretrained(aside)
        _describe(aside, prepared, step, whole=config.full)
        shutil.rmtree(final, ignore_errors=True)
        final.parent.mkdir(parents=True, exist_ok=True)
        aside.rename(final)


def merge(prepared: Plan, run: Run) -> None:
    """`train/merged/`: base and adapter as one checkpoint, whole or not at all; made once."""
    final, aside = run.train_dir / "merged", run.train_dir / ".merged.part"
    if final.is_dir():
        return
    trained = run.manifest()["train"]
    if trained["base_weights"] != models.weights_hash(prepared.source.base):
        what = "the base is not the one that this adapter was trained on"
        raise InputError(what, where=str(prepared.source.base), hint="Name the base as it was")
    with saving(run.train_dir):
        models.merge_adapter(prepared.source.base, run.train_dir / "adapter", aside)
        _describe(aside, prepared, None, whole=True)
        aside.rename(final)


def _describe(folder: Path, prepared: Plan, step: int | None, *, whole: bool) -> None:
    """The note and the card beside saved weights."""
    base, config = models.weights_hash(prepared.source.base), prepared.config
    parts = [prepared.identity, base, step, facts()["packages"], *(["merged"] if whole and not config.full else [])]
    models.write_note(
        folder,
        recipe=sha256_of(json.dumps(parts, sort_keys=True)),
        base_name=prepared.source.name,
        base_weights=base,
        fingerprint=prepared.renderer.fingerprint,
        setting=config.setting,
        system=config.system,
        thinking=config.thinking,
        train=prepared.told | {"steps": step},
    )
    if step is None:
        write_card(folder, prepared, whole=whole)
