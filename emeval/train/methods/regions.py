"""TReFT on other tokens than the prefix: the query, the postfix, all of the prompt, or several (arXiv 2606.06667).

The formula is `treft.py`'s, averaged over the region's tokens of each row, then over rows. What differs is the
reference. Query and `all` depend on the example: each step runs its rows through the initial model as well, one more
forward. The postfix has one reference for the whole run, from one training example that the seed picks; it stands at
another position in every row, so keys are compared before RoPE. Under `all` the postfix is compared with its own row's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from trl import SFTTrainer

from emeval.errors import InputError
from emeval.prefix import KV, PrefixCapture, drift_terms, keys_before_rope, mean_drift
from emeval.train.methods.penalty import InitialModel, PenaltyTrainer
from emeval.train.methods.shared_prefix import SharedPrefixConfig

__all__ = ["RegionConfig", "RegionTrainer"]


@dataclass
class RegionConfig(SharedPrefixConfig):
    """`trl.SFTConfig` with TReFT's settings. Rows need a column `spans`: where prefix, query and postfix end."""

    kv_lambda: float = field(default=10.0, metadata={"help": "Weight of the penalty on the region's drift; 0 is SFT."})
    regions: list[str] = field(
        default_factory=lambda: ["all"], metadata={"help": "Any of prefix, query, postfix; or all."}
    )

    def __post_init__(self) -> None:
        self.remove_unused_columns = False  # the collator takes `spans` out itself
        super().__post_init__()
        if not 0.0 <= self.kv_lambda < float("inf"):
            raise ValueError(f"kv_lambda is {self.kv_lambda}; it must be a number from 0 up")
        if self.gradient_checkpointing:
            raise ValueError("with gradient checkpointing the rows' keys and values are not there to be compared")


class _WithRegions:
    """Adds to a batch which of its tokens are compared: `region`, and of these `kept`, those with the run's reference.

    Both are `[rows, tokens]`, True where a token counts.
    """

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]], regions: Sequence[str]) -> None:
        self.collate, self.regions = collate, set(regions)

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        spans = torch.tensor([row["spans"] for row in rows])
        batch = self.collate([{k: v for k, v in row.items() if k != "spans"} for row in rows])
        prefix, query, postfix = (spans[:, n : n + 1] for n in range(3))
        at = torch.arange(batch["input_ids"].shape[1])[None]
        masks = {
            "prefix": at < prefix,
            "query": (at >= prefix) & (at < query),
            "postfix": (at >= query) & (at < postfix),
            "all": at < postfix,
        }
        region = torch.stack([masks[name] for name in self.regions]).any(dim=0)
        kept = masks["postfix"] if "postfix" in self.regions else torch.zeros_like(region)
        return {**batch, "region": region, "kept": kept}


class RegionTrainer(PenaltyTrainer):
    """`trl.SFTTrainer` with the penalty on a region of each row. Logs `kv_drift` and `sft_loss` beside TRL's own.

    Raises:
        InputError: If training rows do not share the prefix, or postfixes differ in length.
    """

    _name = "TReFT"
    _logged_as = "kv_drift"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.not_shared = "every row's own tokens are compared"
        self.data_collator: Any = _WithRegions(self.data_collator, self.args.regions)
        self._initially = InitialModel(self._inner())
        self._postfix: KV | None = None

    @property
    def _weight(self) -> float:
        return float(self.args.kv_lambda)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss plus `kv_lambda * L_KV`; in evaluation TRL's loss alone."""
        inputs = dict(inputs)
        region, kept = inputs.pop("region"), inputs.pop("kept")
        if not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        reference = self._reference(inputs, region, kept)
        capture = PrefixCapture(None, rows=None)
        with keys_before_rope(self._inner()) as keys:
            result = SFTTrainer.compute_loss(
                self, model, {**inputs, "past_key_values": capture}, return_outputs, num_items_in_batch
            )
        with torch.set_grad_enabled(self._weight > 0):
            terms = drift_terms(keys, capture.captured().values, *reference, mask=region)
            drift = mean_drift(terms)
        return self._penalised(result, drift, return_outputs, num_items_in_batch)

    def _reference(self, inputs: dict[str, Any], region: Tensor, kept: Tensor) -> KV:
        """The initial model's keys (before RoPE) and values of the batch, the postfix's from the kept example."""
        if bool((region & ~kept).any()):
            found = self._observe({k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask")})
        else:  # the postfix alone: nothing of the rows themselves is compared, so no forward is needed
            shapes = [(len(region), k.shape[1], region.shape[1], k.shape[3]) for k in self._kept_postfix().keys]
            blank = tuple(torch.zeros(shape, device=region.device) for shape in shapes)
            found = KV(blank, tuple(b.clone() for b in blank))
        if bool(kept.any()):
            for own, example in zip((*found.keys, *found.values), self._both_of_postfix(kept), strict=True):
                # [rows, heads, tokens, dim] -> the marked tokens, row after row
                own.transpose(1, 2)[kept] = example.transpose(1, 2).expand(len(kept), -1, -1, -1).flatten(0, 1).to(own)
        return found

    def _both_of_postfix(self, kept: Tensor) -> tuple[Tensor, ...]:
        postfix = self._kept_postfix()
        lengths = kept.sum(dim=1)
        if bool((lengths != postfix.tokens).any()):
            row = int((lengths != postfix.tokens).nonzero()[0])
            raise InputError(
                f"row {row} of a training batch has a postfix of {int(lengths[row])} tokens, the kept one has "
                f"{postfix.tokens}",
                where="train_dataset",
                hint="Some content merges with the template's text: trim it",
            )
        return (*postfix.keys, *postfix.values)

    def _kept_postfix(self) -> KV:
        """Keys before RoPE and values of one training example's postfix, `[1, kv_heads, tokens, head_dim]` a layer."""
        if self._postfix is None:
            dice = torch.Generator().manual_seed(self.args.seed)
            row = self.train_dataset[int(torch.randint(len(self.train_dataset), (1,), generator=dice))]
            _, start, stop = row["spans"]
            ids = torch.tensor([row["input_ids"][:stop]], device=self.args.device)
            found = self._observe({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            self._postfix = KV(*(tuple(t[:, :, start:stop].clone() for t in part) for part in found))
        return self._postfix

    def _observe(self, rows: dict[str, Any]) -> KV:
        capture = PrefixCapture(None, rows=None)
        with torch.no_grad(), self._initially() as initial, keys_before_rope(initial) as keys:
            initial(**rows, past_key_values=capture, use_cache=False, logits_to_keep=1)
        return KV(tuple(keys), capture.captured().values).detach()
