"""Supervised finetuning: TRL's trainer as it is. The baseline that every other method is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trl import SFTConfig, SFTTrainer


def make_trainer(
    settings: dict[str, Any], *, prefix_ids: Sequence[int], kv_lambda: float, **trainer: Any
) -> SFTTrainer:
    """A plain SFTTrainer; `prefix_ids` and `kv_lambda` are for methods that regularise."""
    return SFTTrainer(args=SFTConfig(**settings), **trainer)
