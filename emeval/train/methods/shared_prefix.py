"""One prefix forward per batch: all rows start with the same tokens, so their keys and values are computed once.

Causal attention hides the rest of a row from its prefix; its keys and values are the same in every row. They are
computed at batch 1 and expanded to the rows as a cache, gradients included, and only what follows the prefix is run row
by row. The language-model head runs on the tokens that carry loss only, as TRL's own does on a GPU. Exact, and on a CPU
about three quarters of the plain step's time where examples are short (benchmarks/). On a GPU a forward of one short
prefix takes as long as its weights take to be read, or its kernels to be launched: there it must save many tokens.

Method files build on `SharedPrefixTrainer`; with `shared_prefix=False` it is TRL's trainer as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional
from trl import SFTConfig, SFTTrainer

from emeval.chat import Renderer
from emeval.errors import InputError
from emeval.prefix import KV, as_cache, head_only_at, prefix_forward
from emeval.train.rows import IGNORED


@dataclass
class SharedPrefixConfig(SFTConfig):  # type: ignore[misc]
    """`trl.SFTConfig` for rows that share their chat template's prefix."""

    kv_prefix_ids: list[int] | None = field(
        default=None,
        metadata={"help": "Token ids of the prefix every row starts with. Default: what the chat template puts there."},
    )
    shared_prefix: bool | None = field(
        default=None,
        metadata={
            "help": "Run the prefix once per batch where model and kernel allow it; False runs it in every row. "
            "Default: where that is faster, on the CPU, and on a GPU from 512 tokens saved a batch."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.packing or self.padding_free:
            raise ValueError("a shared prefix needs one conversation a row: set packing=False and padding_free=False")


_WORTH_A_FORWARD = 512
"""Tokens that a batch must save on a GPU. On an H100 in bf16 a short forward takes as long as one of some 270 tokens
(800 TFLOP/s, 3 TB/s); for the 135M model of the benchmarks, saving 168 took twice the time of running every row whole.
"""


def _device(args: Any) -> str:
    return str(args.device.type)


class _SamePrefix:
    """Lets no row pass whose first tokens are not the prefix, or whose loss would reach into it."""

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]], prefix_ids: Sequence[int]) -> None:
        self.collate = collate
        self.prefix = torch.tensor(list(prefix_ids))

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        batch = self.collate(rows)
        tokens = len(self.prefix)
        ids = batch["input_ids"]
        same = (ids[:, :tokens] == self.prefix).all(dim=1) if ids.shape[1] > tokens else None
        if same is None or not bool(same.all()):
            row = 0 if same is None else int((~same).nonzero()[0])
            raise InputError(
                f"row {row} of a training batch does not start with the {tokens} prefix tokens",
                where="train_dataset",
                hint="All rows share one prefix: drop the rows' own system prompts, and pad on the right",
            )
        return batch


class SharedPrefixTrainer(SFTTrainer):  # type: ignore[misc]
    """`trl.SFTTrainer` that may run the prefix once per batch. Loss and gradients are those of the plain step.

    Attributes:
        prefix_ids: The prefix, as token ids.
        not_shared: Why the prefix is not shared here, in a few words; None where it is.

    Raises:
        InputError: If training rows do not share the prefix.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prefix_ids = self._find_prefix()
        self.not_shared = self._why_not_shared()
        if self.prefix_ids:
            self.data_collator: Any = _SamePrefix(self.data_collator, self.prefix_ids)

    def _find_prefix(self) -> list[int]:
        if self.args.kv_prefix_ids is not None:
            return list(self.args.kv_prefix_ids)
        # How long the prefix is, the template tells; what it is, the rows do: TRL may have rendered another date.
        tokens = len(Renderer(self.processing_class).prefix_ids())
        return list(next(iter(self.train_dataset))["input_ids"][:tokens])

    def _why_not_shared(self) -> str | None:
        inner = self._inner()
        kernel = getattr(inner.config, "_attn_implementation", None)
        dropout = max((c.lora_dropout for c in getattr(inner, "peft_config", {}).values()), default=0.0)
        reasons = {
            "switched off": self.args.shared_prefix is False,
            "the template has no prefix": not self.prefix_ids,
            "gradient checkpointing keeps no cache": self.args.gradient_checkpointing,
            "several processes": self.accelerator.num_processes > 1,
            # flash attention takes padding beside a cache to be on the left
            f"attention kernel {kernel}": kernel not in ("sdpa", "eager"),
            "LoRA dropout differs by row": dropout > 0,
            "the router's balance loss counts every row's prefix": self.aux_loss_enabled,
            "too few tokens a forward for a GPU": self.args.shared_prefix is None and not self._worth_it(),
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def _worth_it(self) -> bool:
        saved = (self.args.per_device_train_batch_size - 1) * len(self.prefix_ids)
        return _device(self.args) == "cpu" or saved >= _WORTH_A_FORWARD

    def _inner(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss, with the prefix run once for all rows in training."""
        if self.not_shared is not None or not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        kv = prefix_forward(self._inner(), self.prefix_ids)
        return self._loss_behind(kv, model, inputs, return_outputs, num_items_in_batch)

    def _loss_behind(
        self, kv: KV, model: Any, inputs: dict[str, Any], return_outputs: bool, num_items_in_batch: Any
    ) -> Any:
        """TRL's loss of the rows without their prefix, whose keys and values are their cache."""
        rest = {k: inputs[k][:, kv.tokens :] for k in ("input_ids", "labels")}
        cache = as_cache(kv, rest["input_ids"].shape[0], self._inner())
        inputs = {**inputs, **rest, "past_key_values": cache}
        if return_outputs or self.compute_loss_func is not None or self.label_smoother is not None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # Column t predicts the label of column t + 1. `shift_labels` are TRL's name for labels shifted already.
        labels = inputs.pop("labels")[:, 1:]
        wanted = labels != IGNORED
        # On a CPU TRL's head scores every position, padding too; with a small model that is a third of the step.
        with head_only_at(self._inner(), functional.pad(wanted, (0, 1))):
            inputs["shift_labels"] = labels[wanted][None]
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
