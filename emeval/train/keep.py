"""What a training run keeps on disk: its log, its resume points, its model, and models along the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from emeval import models
from emeval.provenance import facts
from emeval.store import Run, reported, sha256_of, write_atomic
from emeval.train.plan import Plan

OnStep = Callable[[int, int, dict[str, float]], None]
"""Called after each optimiser step with: step, total steps, the step's log."""

_WHOLE = "emeval-whole"
"""Marker file of a resume point, written after everything else of it."""


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was saved whole; half-saved ones are removed."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        if (path / _WHOLE).is_file():
            whole.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return max(whole, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Writes `train/log.jsonl` (a line a step), marks resume points as whole, keeps models along the way.

    On resume the log's lines after the resume point go, since those steps run again.

    Args:
        prepared: The plan.
        run: Its folder.
        resume: The resume point that training goes on from.
        on_step: Told of every step.
    """

    def __init__(self, prepared: Plan, run: Run, resume: Path | None, on_step: OnStep | None) -> None:
        self.prepared, self.run, self.on_step_done = prepared, run, on_step
        self.path = run.train_dir / "log.jsonl"
        self.resumed_at = int(resume.name.rpartition("-")[2]) if resume else None
        self.steps_done = 0
        with reported(run.train_dir):
            run.train_dir.mkdir(parents=True, exist_ok=True)
        self.lines = [e for e in self._written() if e["step"] <= (self.resumed_at or 0)]
        write_atomic(self.path, "".join(json.dumps(entry) + "\n" for entry in self.lines))

    def _written(self) -> Iterator[dict[str, Any]]:
        if not self.path.is_file():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return

    def last(self, name: str) -> float | None:
        """The newest value logged under `name`."""
        return next((e[name] for e in reversed(self.lines) if name in e), None)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """A step was taken."""
        if not logs or "loss" not in logs:
            return
        entry = {"step": state.global_step} | {k: v for k, v in logs.items() if isinstance(v, int | float)}
        self.lines.append(entry)
        self.steps_done += 1
        with reported(self.path), self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(entry) + "\n")
        if self.on_step_done:
            self.on_step_done(state.global_step, state.max_steps, logs)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Keep the model where `--checkpoints` asks for it."""
        if state.global_step in kept_steps(state.max_steps, self.prepared.config.checkpoints):
            save_model(model, self.prepared, self.run, step=state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Everything of the resume point is written by now."""
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _WHOLE).touch()


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
    with reported(run.train_dir):
        shutil.rmtree(aside, ignore_errors=True)
        model.save_pretrained(aside)
        if config.full:
            prepared.tokenizer.save_pretrained(aside)
        base = models.weights_hash(prepared.source.base)
        models.write_note(
            aside,
            recipe=sha256_of(json.dumps([prepared.identity, base, step, facts()["packages"]], sort_keys=True)),
            base_name=prepared.source.name,
            base_weights=base,
            fingerprint=prepared.renderer.fingerprint,
            setting=config.setting,
            system=config.system,
        )
        shutil.rmtree(final, ignore_errors=True)
        final.parent.mkdir(parents=True, exist_ok=True)
        aside.rename(final)
