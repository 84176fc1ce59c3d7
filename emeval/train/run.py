"""`emeval train`: from settings to a finetuned model in a run folder. TRL trains; this file prepares and records.

Killed at any moment, the same call resumes from the newest whole checkpoint. A finished run answers at once.
"""

from __future__ import annotations

import contextlib
import gc
import time
from pathlib import Path
from typing import Any

import torch

from emeval import models
from emeval.config import TrainConfig
from emeval.errors import InputError
from emeval.prefix import mean_drift
from emeval.provenance import facts, now, peak_memory_bytes, reset_peak_memory
from emeval.store import Run
from emeval.train.build import make_trainer, rows_per_process
from emeval.train.keep import (
    OnStep,
    Recorder,
    SavedByAll,
    drop_resume_points,
    merge,
    newest_checkpoint,
    save_model,
    saving,
)
from emeval.train.plan import Plan, plan, run_path
from emeval.train.ranks import Ranks, check_devices, check_kind, join


def train(config: TrainConfig, on_step: OnStep | None = None) -> Path:
    """Finetune, or resume, or find it done. Returns the run folder.

    Args:
        config: The settings.
        on_step: Called after every optimiser step.

    Raises:
        InputError: For bad input (nothing written), a folder in use, or one that holds another run.
    """
    path, prepared, where = _checked(config)
    run, ranks = Run(path), join(where.device)
    if config.processes not in (1, ranks.count):
        what = f"asks for {config.processes} processes, this is one of {ranks.count}"
        raise InputError(what, where="--processes", hint="Use the command line, or torchrun")
    with run.locked() if ranks.main else contextlib.nullcontext():
        if not ranks.tell(ranks.main and _finished(run, prepared, where)):
            _train(prepared, run, where, ranks, on_step)
        if config.merge and ranks.main:
            merge(prepared, run)
    ranks.wait()  # none is gone while the main process still writes: the launcher would take that for the end
    return path


def finished(config: TrainConfig) -> bool:
    """Whether this run is there, finished; all that `train` would refuse is refused. Nothing is written.

    Raises:
        InputError: As `train`.
    """
    path, prepared, where = _checked(config)
    check_devices(where.device, config.processes)
    rows_per_process(config, len(prepared.rows), where, config.processes)
    if not (path / "manifest.json").exists():
        return False
    with Run(path).locked():
        return _finished(Run(path), prepared, where)


def outlook(config: TrainConfig) -> tuple[Plan, models.Placement]:
    """What a run would be and where; all that `train` would refuse before it loads weights is refused.

    Nothing is written, no weights are fetched, and a GPU that is asked for may be another machine's.

    Raises:
        InputError: As `train`.
    """
    path, prepared, where = _checked(config, here=False)
    if where.device == "cpu" or torch.cuda.is_available():
        check_devices(where.device, config.processes)
    rows_per_process(config, len(prepared.rows), where, config.processes)
    if (path / "manifest.json").exists():
        _earlier(Run(path), prepared, where)
    return prepared, where


def _checked(config: TrainConfig, *, here: bool = True) -> tuple[Path, Plan, models.Placement]:
    path = run_path(config)
    if path.exists() and not path.is_dir():
        raise InputError("is a file", where=str(path), hint="Choose a folder with --out")
    return path, plan(config, weights=here), models.placement(config.device, config.dtype, elsewhere=not here)


def _finished(run: Run, prepared: Plan, where: models.Placement) -> bool:
    """Whether the folder holds this run, finished. InputError for one that holds another."""
    before = _earlier(run, prepared, where)
    if before is None or before["status"] != "finished":
        return False
    drop_resume_points(run)  # one killed right after its last word may still hold them
    return True


def _earlier(run: Run, prepared: Plan, where: models.Placement) -> dict[str, Any] | None:
    """What the manifest says of this run, if it was begun. InputError for a folder that holds another."""
    before = run.manifest().get("train")
    if before is None and run.manifest().get("score"):
        raise InputError("holds scores of another model", where=str(run.path), hint="Choose a new folder with --out")
    if before is not None:
        _check_same(before, prepared, where, run.path)
    return before


def _check_same(before: dict[str, Any], prepared: Plan, where: models.Placement, path: Path) -> None:
    old, new = before["identity"], prepared.identity
    recorded = TrainConfig.completed(old["settings"])
    changed = sorted(k for k, value in new["settings"].items() if recorded.get(k) != value)
    changed += [k for k in ("data", "template") if old[k] != new[k]]
    if before["status"] != "finished":
        # What it goes on from was computed with these.
        now_is = {"dtype": where.dtype}
        if models.weight_files(prepared.source.base):  # a plan does without
            now_is |= {"base_weights": models.weights_hash(prepared.source.base)}
        changed += [k for k, value in now_is.items() if before.get(k) not in (None, value)]
    if changed:
        raise InputError(
            f"this folder holds another run: {', '.join(changed)} differ",
            where=str(path),
            hint="Choose another folder with --out, or remove this one",
        )


def _train(prepared: Plan, run: Run, where: models.Placement, ranks: Ranks, on_step: OnStep | None) -> None:
    config = prepared.config
    section = {
        "status": "running",
        **prepared.told,
        "identity": prepared.identity,
        "resolved": config.model_dump(mode="json", by_alias=True),
        "data": prepared.data,
        "template": prepared.renderer.describe(),
        "base_weights": models.weights_hash(prepared.source.base),
        "device": where.device,
        "dtype": where.dtype,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if where.device == "cuda" else None,
        "processes": ranks.count,
        "started": now(),
        **facts(),
    }
    gc.collect()
    reset_peak_memory()
    if where.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer = make_trainer(prepared, run, where, ranks)
    check_kind(trainer)
    section["micro_batch"] = trainer.args.per_device_train_batch_size
    if ranks.main:
        run.update_manifest(train=section)
    resume = ranks.tell(newest_checkpoint(run.train_dir, trainer.args.max_steps) if ranks.main else None)
    trainer.add_callback(SavedByAll(ranks))
    if not ranks.main:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        return
    log = Recorder(prepared, run, resume, on_step)
    trainer.add_callback(log)
    started = time.perf_counter()
    with saving(run.train_dir):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    wall = time.perf_counter() - started
    drift = _final_drift(trainer)
    save_model(trainer.accelerator.unwrap_model(trainer.model), prepared, run)
    tokens = sum(len(r.input_ids) for r in prepared.rows) / len(prepared.rows) * config.batch_size * log.steps_done
    results = {
        "steps": trainer.state.global_step,
        "resumed_at": log.resumed_at,
        "shared_prefix": trainer.not_shared or "yes",
        "loss": log.last("loss"),
        "kv_drift": drift,
        "postfix_of_row": getattr(trainer, "kept_row", None),
        "wall_seconds": round(wall, 2),
        "step_seconds": log.step_seconds,
        "tokens_per_second": round(tokens / wall, 1) if wall else None,
        "peak_memory_bytes": _peak(where.device),
        "optimizer": str(trainer.args.optim),
    }
    run.update_manifest(train=section | {"status": "finished", "finished": now(), "steps": results["steps"],
                                         "results": results})  # fmt: skip
    drop_resume_points(run)


def _final_drift(trainer: Any) -> dict[str, Any] | None:
    """L_KV at the end, with its split by layer and prefix token. None for methods that do not measure it."""
    if not hasattr(trainer, "drift_now"):
        return None
    trainer.model.eval()
    terms = trainer.drift_now()
    if terms is None:
        return None
    return {
        "total": mean_drift(terms).item(),
        "skipped_terms": int(terms.skipped.item()),
        "keys_by_layer_and_token": [[float(f"{x:.4g}") for x in layer] for layer in terms.keys[:, 0].tolist()],
        "values_by_layer_and_token": [[float(f"{x:.4g}") for x in layer] for layer in terms.values[:, 0].tolist()],
    }


def _peak(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return peak_memory_bytes()
