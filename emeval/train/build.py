"""From a plan to TRL's trainer: its settings, the LoRA adapter, quiet libraries."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from emeval import models
from emeval.config import REGULARISED, TrainConfig
from emeval.errors import InputError
from emeval.provenance import installed
from emeval.store import Run
from emeval.train.methods import METHODS
from emeval.train.plan import Plan
from emeval.train.ranks import Ranks
from emeval.train.rows import as_dataset


def make_trainer(prepared: Plan, run: Run, where: models.Placement, ranks: Ranks) -> Any:
    """The method's trainer, with the model loaded and the rows in place."""
    settings = trainer_settings(prepared.config, run.train_dir, where, len(prepared.rows), ranks.count)
    return trainer_of(models.load_model(prepared.source, where, trainable=True), prepared, settings)


def trainer_of(model: Any, prepared: Plan, settings: dict[str, Any]) -> Any:
    """The method's trainer of this model, with the rows in place; `settings` as `trainer_settings` has them."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    config = prepared.config
    module, _, name = METHODS[config.method].partition(":")
    make = getattr(importlib.import_module(module), name)
    trainer = make(
        settings,
        prefix_ids=prepared.renderer.prefix_ids(),
        kv_lambda=config.lambda_,
        **_own(prepared),
        model=model,
        train_dataset=as_dataset(prepared.rows),
        processing_class=prepared.tokenizer,
        peft_config=None if config.full else lora_config(config, model),
    )
    _quiet(trainer)
    return trainer


def _own(prepared: Plan) -> dict[str, Any]:
    """What only this method takes."""
    config = prepared.config
    if config.method == "treft":
        return {"regions": config.region.split(","), "drift": config.drift}
    if config.method.startswith("kl-"):
        return {"norm": config.kl_norm, "retain": as_dataset(prepared.retained) if prepared.retained else None}
    return {}


def _quiet(trainer: Any) -> None:
    """Our own log and progress take the place of the console printers."""
    from transformers import PrinterCallback, ProgressCallback

    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)


def trainer_settings(
    config: TrainConfig, folder: Path, where: models.Placement, rows: int, processes: int
) -> dict[str, Any]:
    """The keyword arguments of the method's config class; the trainer writes below `folder`."""
    micro, accumulation = rows_per_process(config, rows, where, processes)
    steps = config.steps or max(1, round(config.epochs * rows / config.batch_size))
    apart = {"clip_apart": config.clip == "apart"} if config.method in REGULARISED else {}
    return apart | {
        "output_dir": str(folder),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "max_steps": steps,
        "learning_rate": config.lr,
        "lr_scheduler_type": "cosine",
        "warmup_steps": min(config.warmup_steps, steps // 2),
        "weight_decay": config.weight_decay,
        "optim": _optimiser(config, where),
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
        "ddp_find_unused_parameters": False,
        "report_to": "none",
        "disable_tqdm": True,
    }


def rows_per_process(config: TrainConfig, rows: int, where: models.Placement, processes: int) -> tuple[int, int]:
    """Rows of a forward, and how many forwards make up a process's share of a step. InputError if they do not fit."""
    share, rest = divmod(config.batch_size, processes)
    if rest or (config.micro_batch and share % config.micro_batch):
        what = f"{config.batch_size} rows a step cannot be shared by {processes} processes"
        what += f" in micro-batches of {config.micro_batch}" if config.micro_batch else ""
        raise InputError(what, where="--batch-size", hint="Give a multiple")
    most = min(share, rows) if where.device == "cpu" else min(share, 4)
    micro = config.micro_batch or next(n for n in range(most, 0, -1) if share % n == 0)
    return micro, share // micro


def _optimiser(config: TrainConfig, where: models.Placement) -> str:
    """The paper's keeps its state in 8 bits: a CUDA package of its own, taken where a recipe is and it is installed."""
    return "adamw_bnb_8bit" if config.recipe and where.device == "cuda" and installed("bitsandbytes") else "adamw_torch"


_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def lora_config(config: TrainConfig, model: Any) -> Any:
    """The `peft.LoraConfig` of this run: all linear layers but the head."""
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
