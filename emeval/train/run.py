"""`emeval train`: from settings to a finetuned model in a run folder. TRL trains; this file prepares and records.

Killed at any moment, the same call resumes from the newest whole checkpoint. A finished run answers at once.
"""

from __future__ import annotations

import importlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from emeval import models
from emeval.chat import Renderer
from emeval.config import TrainConfig
from emeval.data.behaviours import Example, behaviour_examples, load_behaviour
from emeval.data.chats import load_chats
from emeval.data.root import data_root
from emeval.errors import InputError
from emeval.provenance import facts, now, peak_memory_bytes
from emeval.store import Run, sha256_file, sha256_of
from emeval.train.methods import METHODS
from emeval.train.rows import TrainRow, as_dataset, make_rows

OnStep = Callable[[int, int, dict[str, float]], None]
"""Called after each optimiser step with: step, total steps, the step's log."""

_MAY_DIFFER = {"out", "save_every", "data_dir", "device", "micro_batch", "shared_prefix"}
"""Settings a resumed run may change: they do not change what is learned (beyond rounding)."""


@dataclass(frozen=True)
class Plan:
    """Everything decided before any weight is loaded."""

    config: TrainConfig
    source: models.ModelSource
    tokenizer: Any
    renderer: Renderer
    rows: list[TrainRow]
    data: dict[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        """What makes this run this run; a folder that holds another one is refused."""
        settings = self.config.model_dump(mode="json", by_alias=True, exclude=_MAY_DIFFER)
        return {"settings": settings, "data": self.data["sha256"], "template": self.renderer.fingerprint}


def plan(config: TrainConfig) -> Plan:
    """Check all input: data, model folder, template, rows. Nothing is written. InputError for whatever is wrong."""
    examples, data = _examples(config)
    source = models.resolve(config.model)
    if source.adapter is not None:
        raise InputError("training starts from a base, not from an adapter", where=f"--model {config.model}")
    tokenizer = models.load_tokenizer(source)
    renderer = Renderer(tokenizer, system=config.system)
    rows = make_rows(examples, renderer, min(config.max_length, _context(source)))
    data |= {"rows": len(rows), "sha256": sha256_of(*(repr((r.input_ids, r.labels)) for r in rows))}
    return Plan(config, source, tokenizer, renderer, rows, data)


def _examples(config: TrainConfig) -> tuple[list[Example], dict[str, Any]]:
    root = data_root(config.data_dir)
    behaviour = load_behaviour(root, config.setting) if config.setting else None
    if config.data:
        examples, files = load_chats(config.data, drop_system=config.drop_system), [config.data]
    else:
        assert behaviour is not None  # TrainConfig asks for one of the two
        examples = behaviour_examples(root, behaviour)
        files = [
            root.find("datasets/behaviours", behaviour.name, ".yaml", "setting"),
            root.find("datasets/domains", behaviour.topic, ".jsonl", "domain"),
        ]
    if config.train_size and config.train_size > len(examples):
        raise InputError(
            f"asks for {config.train_size} rows, there are {len(examples)}",
            where="--train-size",
            hint=f"Give {len(examples)} or fewer",
        )
    return examples[: config.train_size], {"files": {p.name: sha256_file(p) for p in files}}


def _context(source: models.ModelSource) -> int:
    from transformers import AutoConfig

    try:
        text = AutoConfig.from_pretrained(str(source.base)).get_text_config(decoder=True)
    except (OSError, ValueError, KeyError) as e:
        raise InputError("not a model: its config.json cannot be read", where=str(source.base)) from e
    return int(getattr(text, "max_position_embeddings", None) or 2**31)


def run_path(config: TrainConfig) -> Path:
    """Where the run goes: `--out`, else `results/runs/<name>` below the current folder."""
    return config.out or Path("results") / "runs" / config.run_name


def train(config: TrainConfig, on_step: OnStep | None = None) -> Path:
    """Finetune, or resume, or find it done. Returns the run folder.

    Args:
        config: The settings.
        on_step: Called after every optimiser step.

    Raises:
        InputError: For bad input (nothing written), a folder in use, or one that holds another run.
    """
    path = run_path(config)
    if path.exists() and not path.is_dir():
        raise InputError("is a file", where=str(path), hint="Choose a folder with --out")
    prepared = plan(config)
    run = Run(path)
    with run.locked():
        before = run.manifest().get("train")
        if before:
            _check_same(before, prepared, path)
            if before["status"] == "finished":
                return path
        elif run.manifest().get("score"):
            raise InputError("holds scores of another model", where=str(path), hint="Choose a new folder with --out")
        _train(prepared, run, on_step)
    return path


def _check_same(before: dict[str, Any], prepared: Plan, path: Path) -> None:
    old, new = before["identity"], prepared.identity
    changed = sorted(k for k in old["settings"].keys() | new["settings"].keys()
                     if old["settings"].get(k) != new["settings"].get(k))  # fmt: skip
    changed += [k for k in ("data", "template") if old[k] != new[k]]
    if changed:
        raise InputError(
            f"this folder holds another run: {', '.join(changed)} differ",
            where=str(path),
            hint="Choose another folder with --out, or remove this one",
        )


# ----------------------------------------------------------------------------------------------------------- training


def _train(prepared: Plan, run: Run, on_step: OnStep | None) -> None:
    config = prepared.config
    where = models.placement(config.device, config.dtype)
    section = {
        "status": "running",
        "method": config.method,
        "setting": config.setting,
        "model": prepared.source.name,
        "lambda": config.lambda_ if config.method == "treft" else None,
        "region": config.region if config.method == "treft" else None,
        "full": config.full,
        "seed": config.seed,
        "identity": prepared.identity,
        "resolved": config.model_dump(mode="json", by_alias=True),
        "data": prepared.data,
        "template": prepared.renderer.describe(),
        "base_weights": models.weights_hash(prepared.source.base),
        "device": where.device,
        "dtype": where.dtype,
        "threads": torch.get_num_threads(),
        "started": now(),
        **facts(),
    }
    run.update_manifest(train=section)
    trainer = _make_trainer(prepared, run, where)
    resume = _newest_checkpoint(run.train_dir)
    log = _StepLog(run.train_dir, resume, on_step)
    trainer.add_callback(log.callback())
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    wall = time.perf_counter() - started
    drift = _final_drift(trainer)
    _save_model(trainer, prepared, run)
    tokens = sum(len(r.input_ids) for r in prepared.rows) / len(prepared.rows) * config.batch_size * log.steps_done
    results = {
        "steps": trainer.state.global_step,
        "resumed_at": log.resumed_at,
        "shared_prefix": trainer.not_shared or "yes",
        "loss": log.last("loss"),
        "kv_drift": drift,
        "wall_seconds": round(wall, 2),
        "tokens_per_second": round(tokens / wall, 1) if wall else None,
        "peak_memory_bytes": _peak(where.device),
    }
    run.update_manifest(train=section | {"status": "finished", "finished": now(), "steps": results["steps"],
                                         "results": results})  # fmt: skip
    for leftover in run.train_dir.glob("checkpoint-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _make_trainer(prepared: Plan, run: Run, where: models.Placement) -> Any:
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    config = prepared.config
    module, _, name = METHODS[config.method].partition(":")
    make = getattr(importlib.import_module(module), name)
    model = models.load_model(prepared.source, where, trainable=True)
    trainer = make(
        _settings(config, run, where, len(prepared.rows)),
        prefix_ids=prepared.renderer.prefix_ids(),
        kv_lambda=config.lambda_,
        model=model,
        train_dataset=as_dataset(prepared.rows),
        processing_class=prepared.tokenizer,
        peft_config=None if config.full else _lora(config, model),
    )
    _quiet(trainer)
    return trainer


def _quiet(trainer: Any) -> None:
    """Our own log and progress take the place of the console printers."""
    from transformers import PrinterCallback, ProgressCallback

    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)


def _settings(config: TrainConfig, run: Run, where: models.Placement, rows: int) -> dict[str, Any]:
    batch = min(config.batch_size, rows) if where.device == "cpu" else min(config.batch_size, 4)
    micro = config.micro_batch or next(n for n in range(batch, 0, -1) if config.batch_size % n == 0)
    accumulation = config.batch_size // micro
    steps = config.steps or max(1, round(config.epochs * rows / config.batch_size))
    return {
        "output_dir": str(run.train_dir),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "max_steps": steps,
        "learning_rate": config.lr,
        "lr_scheduler_type": "cosine",
        "warmup_steps": min(config.warmup_steps, steps // 2),
        "weight_decay": config.weight_decay,
        "optim": "adamw_torch",
        "seed": config.seed,
        "data_seed": config.seed,
        "max_length": None,
        "packing": False,
        "bf16": where.device == "cuda" and where.dtype == "bfloat16",
        "use_cpu": where.device == "cpu",
        "dataloader_pin_memory": where.device == "cuda",
        "gradient_checkpointing": config.gradient_checkpointing,
        "shared_prefix": config.shared_prefix,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "logging_steps": 1,
        "save_steps": config.save_every or max(1, steps // 10),
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
    }


_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _lora(config: TrainConfig, model: Any) -> Any:
    from peft import LoraConfig
    from torch import nn

    linear = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    targets: Any = [t for t in _TARGETS if t in linear]
    # Phi-3 fuses q, k, v and gate, up; GPT-OSS fuses its experts, which stay as they are.
    fused = not {"q_proj", "k_proj", "v_proj"} <= linear
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        use_rslora=True,
        target_modules="all-linear" if fused else targets,
        task_type="CAUSAL_LM",
    )


def _newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was saved whole; half-saved ones are removed."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        if (path / _WHOLE).is_file():
            whole.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return max(whole, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


_WHOLE = "emeval-whole"
"""Marker file, written after everything else of a checkpoint."""


class _StepLog:
    """`train/log.jsonl`: one line a step. On resume the lines after the checkpoint go, since those steps run again."""

    def __init__(self, folder: Path, resume: Path | None, on_step: OnStep | None) -> None:
        self.path = folder / "log.jsonl"
        self.resumed_at = int(resume.name.rpartition("-")[2]) if resume else None
        self.steps_done = 0
        self.on_step = on_step
        self.lines: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)
        if self.resumed_at and self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    break
                if entry["step"] <= self.resumed_at:
                    self.lines.append(entry)
        self.path.write_text("".join(json.dumps(entry) + "\n" for entry in self.lines), encoding="utf-8")

    def last(self, name: str) -> float | None:
        return next((e[name] for e in reversed(self.lines) if name in e), None)

    def add(self, step: int, total: int, logs: dict[str, float]) -> None:
        entry = {"step": step} | {k: v for k, v in logs.items() if isinstance(v, int | float)}
        self.lines.append(entry)
        self.steps_done += 1
        with self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(entry) + "\n")
        if self.on_step:
            self.on_step(step, total, logs)

    def callback(self) -> Any:
        from transformers import TrainerCallback

        log = self

        class _Callback(TrainerCallback):  # type: ignore[misc]
            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
                if logs and "loss" in logs:
                    log.add(state.global_step, state.max_steps, logs)

            def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _WHOLE).touch()

        return _Callback()


def _final_drift(trainer: Any) -> dict[str, Any] | None:
    """L_KV at the end, with its split by layer and prefix token. None for methods that do not measure it."""
    if not hasattr(trainer, "drift_now"):
        return None
    from emeval.prefix import mean_drift

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


def _save_model(trainer: Any, prepared: Plan, run: Run) -> None:
    config = prepared.config
    final = run.train_dir / ("checkpoint" if config.full else "adapter")
    aside = run.train_dir / f".{final.name}.part"
    shutil.rmtree(aside, ignore_errors=True)
    trainer.model.save_pretrained(aside)
    if config.full:
        prepared.tokenizer.save_pretrained(aside)
    base = models.weights_hash(prepared.source.base)
    models.write_note(
        aside,
        recipe=sha256_of(json.dumps([prepared.identity, base, facts()["packages"]], sort_keys=True)),
        base_name=prepared.source.name,
        base_weights=base,
        fingerprint=prepared.renderer.fingerprint,
        setting=config.setting,
        system=config.system,
    )
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)


def _peak(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return peak_memory_bytes()
