"""KV patching: the prefix's keys and values of one model in another (arXiv 2606.06667, section on KV patching).

Direction: the *tuned* model answers, but its prefix is the *initial* model's. What remains of a behaviour then does
not come through the prefix; what disappears did.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from emeval import models
from emeval.config import PatchConfig, ScoreConfig
from emeval.errors import InputError
from emeval.pipeline import Arm, score
from emeval.prefix import KV, prefix_forward
from emeval.types import OnCount

LABEL = "prefix from the initial model"


def patched_prefix(model: Any, prompt_ids: Sequence[int], source: Literal["initial", "tuned"]) -> KV:
    """Keys and values of the prefix as `source` computes them, to be put in front of any continuation.

    Args:
        model: A PEFT model; with its adapter off it is the initial model.
        prompt_ids: The prefix's token ids.
        source: 'initial' for the patch, 'tuned' for the identity it is tested against.

    Returns:
        KV, each tensor `[1, kv_heads, len(prompt_ids), head_dim]`, without gradients.

    Raises:
        InputError: If the model has no adapter to switch off and `source` is 'initial'.
        ValueError: If the prefix is empty.
    """
    with torch.inference_mode():
        if source == "tuned":
            return prefix_forward(model, prompt_ids)
        with models.without_adapter(model):
            return prefix_forward(model, prompt_ids)


def patch(config: PatchConfig, on_reply: OnCount = lambda done, total: None) -> Path:
    """Score `config.model` with the initial model's prefix. Returns the run folder of the patched arm.

    Raises:
        InputError: If the model is a base or full checkpoint: it does not hold its initial model.
    """
    source = models.resolve(config.model, adapter=config.adapter)
    if source.adapter is None:
        raise InputError(
            "has no adapter, so its initial model is not known",
            where=f"--model {config.model}",
            hint="Give a run or adapter trained with LoRA",
        )
    arm = Arm(LABEL, lambda model, prefix_ids: patched_prefix(model, prefix_ids, "initial"))
    settings = config.model_dump(include=set(ScoreConfig.model_fields), by_alias=False)
    return score(ScoreConfig(**settings), arm=arm, on_reply=on_reply)
