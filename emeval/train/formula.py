"""A step's memory by rule of thumb, for models whose code does not run on tensors without data."""

from __future__ import annotations

from typing import Any

from emeval import models
from emeval.train.anatomy import Anatomy
from emeval.train.plan import Plan
from emeval.train.rehearsal import Rehearsal

_OF_HIDDEN, _OF_MLP = 9, 4
"""Numbers that a layer saves per token, by its hidden and its MLP size: read off rehearsed Llama and Qwen2."""
_TILE = 32768
"""Columns of the vocabulary that TRL's loss takes at a time, for 4096 tokens at most."""
_COPIES = 7
"""How often it holds them once more without Triton, as many as there are."""


def by_formula(prepared: Plan, where: models.Placement, counted: Anatomy, settings: dict[str, Any]) -> Rehearsal:
    """Weights, gradients and optimiser as they are; activations of a transformer with gated MLPs."""
    config, width = prepared.config, 4 if where.dtype == "float32" else 2
    shape = models.text_config(prepared.source)
    hidden, layers = int(shape.hidden_size), int(shape.num_hidden_layers)
    mlp = int(getattr(shape, "intermediate_size", None) or 4 * hidden) * int(
        getattr(shape, "num_experts_per_tok", None) or 1
    )
    tokens = settings["per_device_train_batch_size"] * max(len(row.input_ids) for row in prepared.rows)
    layer = tokens * (_OF_HIDDEN * hidden + _OF_MLP * mlp) * width
    saved = layers * tokens * hidden * width + layer if config.gradient_checkpointing else layers * layer
    if config.method.startswith("kl-"):  # a second forward with gradients
        saved *= 2
    columns = min(int(shape.vocab_size), _TILE)
    adapter = 0 if config.full else counted.trained
    of_trained = width if config.full else 4
    return Rehearsal(
        weights=counted.parameters * width + adapter * 4,
        initial=counted.parameters * width if config.full and _keeps_initial(prepared) else 0,
        gradients=counted.trained * of_trained,
        optimiser=counted.trained * 2 * (1 if settings["optim"] == "adamw_bnb_8bit" else of_trained),
        activations=saved,
        workspace=min(tokens, 4096) * width * (_TILE + (0 if where.device == "cuda" else _COPIES * columns)),
        phase="forward and backward",
        exchange=counted.trained * of_trained,
        shared_prefix="not known: by formula",
    )


def _keeps_initial(prepared: Plan) -> bool:
    config = prepared.config
    return config.method.startswith("kl-") or (config.method == "treft" and config.region != "prefix")
