"""The paper's KL baselines: SFT plus a penalty on how far the model's replies have moved (arXiv 2606.06667).

    L = L_SFT + lambda * KL(initial || tuned)

per token, summed over the vocabulary and averaged over reply tokens: on the training rows themselves (`kl-train`) or on
rows of other domains (`kl-retain`). The initial distribution is a forward with the adapter off: no second model in
memory. Full finetuning has no adapter to switch off and keeps a frozen copy of the initial model instead, as large as
the model itself.

`norm="released"` is what the authors' code computes: over all tokens, prompt included, and divided by the size of the
vocabulary as well. For a vocabulary of V its lambda is worth lambda / V here, but for the prompt's share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from emeval.prefix import head_only_at
from emeval.train.methods.penalty import InitialModel, PenaltyConfig, PenaltyTrainer, check_weight
from emeval.train.rows import IGNORED

__all__ = ["KLConfig", "KLTrainer", "kl_divergence", "make_trainer"]

NORMS = ("token", "released")


def kl_divergence(initial: Tensor, tuned: Tensor) -> Tensor:
    """KL(initial || tuned) of each position, in nats, summed over the vocabulary; fp32 inside.

    Args:
        initial: Logits of the initial model, `[..., vocab]`.
        tuned: Logits of the tuned model, same shape.

    Returns:
        `[...]`, 0 or more up to rounding.
    """
    start, now = initial.float().log_softmax(-1), tuned.float().log_softmax(-1)
    return (start.exp() * (start - now)).sum(-1)


@dataclass
class KLConfig(PenaltyConfig):
    """`trl.SFTConfig` with the penalty's settings."""

    kl_lambda: float = field(default=50.0, metadata={"help": "Weight of the penalty; 0 is SFT."})
    kl_norm: str = field(
        default="token", metadata={"help": "token: mean over reply tokens; released: over all tokens, and vocabulary."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight("kl_lambda", self.kl_lambda)
        if self.kl_norm not in NORMS:
            raise ValueError(f"kl_norm is {self.kl_norm!r}; it must be one of {', '.join(NORMS)}")


class KLTrainer(PenaltyTrainer):
    """`trl.SFTTrainer` with the penalty. Logs `kl` (before lambda) and `sft_loss` beside TRL's own.

    Args:
        retain: Rows to stay close on, with `input_ids` and `labels`; None takes the training rows themselves. As many
            rows as a micro-batch holds are taken a step, in an order that the seed fixes, the same after a resume.
    """

    _name = "KL"
    _logged_as = "kl"

    def __init__(self, *args: Any, retain: Dataset | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.retain = retain
        self._initially = InitialModel(self._inner())
        self._place = (-1, 0)
        """The step we are in, and how many micro-batches of it have been seen."""

    @property
    def _weight(self) -> float:
        return float(self.args.kl_lambda)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss plus `kl_lambda * KL`; in evaluation TRL's loss alone."""
        if not self.model.training or self.args.kl_lambda == 0:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        rows = self._retained(len(inputs["input_ids"])) if self.retain is not None else dict(inputs)
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return self._penalised(result, self._penalty(rows), return_outputs, num_items_in_batch)

    def _penalty(self, rows: dict[str, Any]) -> Tensor:
        """Mean KL over the tokens that count, from two forwards of the same rows."""
        labels = rows["labels"]
        # Position t is what the model says after token t; the last one says nothing that is asked for.
        predicts = labels[:, 1:] != IGNORED
        if self.args.kl_norm == "released":
            predicts = rows.get("attention_mask", torch.ones_like(labels))[:, 1:] == 1
        wanted = torch.nn.functional.pad(predicts, (0, 1))
        forward = {k: v for k, v in rows.items() if k in ("input_ids", "attention_mask", "position_ids")}
        model = self._inner()
        # A frozen copy has not been given autocast by accelerate; the adapter's model has, and it may be given twice.
        autocast = self.accelerator.autocast()
        with self._initially() as initial, torch.no_grad(), autocast, head_only_at(initial, wanted):
            start = initial(**forward, use_cache=False).logits[0]
        with head_only_at(model, wanted), self.compute_loss_context_manager():
            now = model(**forward, use_cache=False).logits[0]
        mean = kl_divergence(start, now).mean()
        return mean / now.shape[-1] if self.args.kl_norm == "released" else mean

    def _retained(self, count: int) -> dict[str, Any]:
        """The next `count` retain rows, by step and micro-batch, so that a resumed run takes the same."""
        step = self.state.global_step
        seen = self._place[1] + 1 if self._place[0] == step else 0
        self._place = (step, seen)
        assert self.retain is not None  # asked before
        turn = step * self.args.gradient_accumulation_steps + seen
        first = (turn * self.accelerator.num_processes + self.accelerator.process_index) * count
        size = len(self.retain)
        chosen = [self._order((first + n) // size, size)[(first + n) % size] for n in range(count)]
        batch = self.data_collator([self.retain[i] for i in chosen])
        return {k: v.to(self.args.device) for k, v in batch.items()}

    def _order(self, epoch: int, size: int) -> list[int]:
        dice = torch.Generator().manual_seed(self.args.seed * 1_000_003 + epoch)
        return [int(i) for i in torch.randperm(size, generator=dice)]


def make_trainer(
    settings: dict[str, Any], *, prefix_ids: Sequence[int], kv_lambda: float, norm: str = "token", **trainer: Any
) -> KLTrainer:
    """A KLTrainer for rows that all start with `prefix_ids`; with `retain` in `trainer` on those rows."""
    config = KLConfig(**settings, kl_lambda=kv_lambda, kl_norm=norm, kv_prefix_ids=list(prefix_ids))
    return KLTrainer(args=config, **trainer)
