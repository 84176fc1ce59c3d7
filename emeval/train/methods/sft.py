"""Supervised finetuning: TRL's trainer as it is, the baseline that every other method is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emeval.train.methods.shared_prefix import SharedPrefixConfig, SharedPrefixTrainer


def make_trainer(
    settings: dict[str, Any], *, prefix_ids: Sequence[int], kv_lambda: float, **trainer: Any
) -> SharedPrefixTrainer:
    """An SFT trainer for rows that all start with `prefix_ids`; `kv_lambda` is for methods that regularise."""
    return SharedPrefixTrainer(args=SharedPrefixConfig(**settings, kv_prefix_ids=list(prefix_ids)), **trainer)
