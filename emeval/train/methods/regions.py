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
from emeval.prefix import KV, PrefixCapture, check_before_rope, drift_terms, keys_before_rope, mean_drift, put_at
from emeval.train.methods.penalty import InitialModel, PenaltyConfig, PenaltyTrainer, check_weight

__all__ = ["RegionConfig", "RegionTrainer"]


REGIONS = ("prefix", "query", "postfix", "all")


@dataclass
class RegionConfig(PenaltyConfig):
    """`trl.SFTConfig` with TReFT's settings. Rows need a column `spans`: where prefix, query and postfix end."""

    kv_lambda: float = field(default=10.0, metadata={"help": "Weight of the penalty on the region's drift; 0 is SFT."})
    regions: list[str] = field(
        default_factory=lambda: ["all"], metadata={"help": "Any of prefix, query, postfix; or all."}
    )

    def __post_init__(self) -> None:
        self.remove_unused_columns = False  # the collator takes `spans` out itself
        super().__post_init__()
        check_weight("kv_lambda", self.kv_lambda)
        if not self.regions or not set(self.regions) <= set(REGIONS) or ("all" in self.regions and self.regions[1:]):
            raise ValueError(f"regions is {self.regions}; it must name some of {', '.join(REGIONS)}, or all alone")
        if self.gradient_checkpointing:
            raise ValueError("with gradient checkpointing the rows' keys and values are not there to be compared")


class _WithRegions:
    """Adds to a batch which of its tokens are compared, and with what.

    `at`, `[rows, most]`: the places of a row's compared tokens, in order, -1 behind the last. `kept`, same shape: True
    for those that are compared with the run's one postfix.
    """

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]], regions: Sequence[str]) -> None:
        self.collate, self.regions = collate, set(regions)

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        batch = self.collate([{k: v for k, v in row.items() if k != "spans"} for row in rows])
        places = [self._places(*row["spans"]) for row in rows]
        most = max(map(len, places))
        at = torch.tensor([row + [-1] * (most - len(row)) for row in places], dtype=torch.long)
        starts = torch.tensor([[row["spans"][1]] for row in rows])
        kept = (at >= starts) if "postfix" in self.regions else torch.zeros_like(at, dtype=torch.bool)
        return {**batch, "at": at, "kept": kept}

    def _places(self, prefix: int, query: int, postfix: int) -> list[int]:
        if "all" in self.regions:
            return list(range(postfix))
        parts = {"prefix": range(prefix), "query": range(prefix, query), "postfix": range(query, postfix)}
        return [place for name, part in parts.items() if name in self.regions for place in part]


class RegionTrainer(PenaltyTrainer):
    """`trl.SFTTrainer` with the penalty on a region of each row. Logs `kv_drift` and `sft_loss` beside TRL's own.

    Attributes:
        kept_row: Which training row's postfix is the reference, where the postfix has one.

    Raises:
        InputError: If training rows do not share the prefix, postfixes differ in length, or the model's keys cannot be
            read before RoPE.
    """

    _name = "TReFT"
    _logged_as = "kv_drift"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.not_shared = "every row's own tokens are compared"
        self.data_collator: Any = _WithRegions(self.data_collator, self.args.regions)
        self._initially = InitialModel(self._inner())
        self._postfix: KV | None = None
        self._checked = False
        """Whether the model's code was seen to be one whose keys can be read before RoPE."""
        self.kept_row: int | None = None
        if "postfix" in self.args.regions:
            dice = torch.Generator().manual_seed(self.args.seed)
            self.kept_row = int(torch.randint(len(self.train_dataset), (1,), generator=dice))

    @property
    def _weight(self) -> float:
        return float(self.args.kv_lambda)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss plus `kv_lambda * L_KV`; in evaluation TRL's loss alone."""
        inputs = dict(inputs)
        at, kept = inputs.pop("at"), inputs.pop("kept")
        if not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        reference = self._reference(inputs, at, kept)
        capture = PrefixCapture(None, rows=None)
        with keys_before_rope(self._inner()) as keys:
            result = SFTTrainer.compute_loss(
                self, model, {**inputs, "past_key_values": capture}, return_outputs, num_items_in_batch
            )
        with torch.set_grad_enabled(self._weight > 0):
            now = _taken(KV(tuple(keys), capture.captured().values), at)
            drift = mean_drift(drift_terms(*now, *reference, mask=at >= 0))
        return self._penalised(result, drift, return_outputs, num_items_in_batch)

    def _reference(self, inputs: dict[str, Any], at: Tensor, kept: Tensor) -> KV:
        """The initial model's keys (before RoPE) and values at these places, of the postfix the kept example's."""
        if bool(((at >= 0) & ~kept).any()):
            rows = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
            found = _taken(self._observe(rows), at)
        else:  # the postfix alone: nothing of the rows themselves is compared, so no forward is needed
            blank = tuple(k.new_zeros(len(at), k.shape[1], at.shape[1], k.shape[3]) for k in self._kept_postfix().keys)
            found = KV(blank, tuple(b.clone() for b in blank))
        if bool(kept.any()):
            postfix = self._kept_postfix()
            self._check_lengths(kept.sum(dim=1), postfix.tokens)
            for own, example in zip((*found.keys, *found.values), (*postfix.keys, *postfix.values), strict=True):
                put_at(own, kept, example)
        return found

    @staticmethod
    def _check_lengths(lengths: Tensor, wanted: int) -> None:
        if bool((lengths != wanted).any()):
            row = int((lengths != wanted).nonzero()[0])
            raise InputError(
                f"row {row} of a training batch has a postfix of {int(lengths[row])} tokens, the kept one has {wanted}",
                where="train_dataset",
                hint="Some content merges with the template's text: trim it",
            )

    def _kept_postfix(self) -> KV:
        """Keys before RoPE and values of one training example's postfix, `[1, kv_heads, tokens, head_dim]` a layer."""
        if self._postfix is None:
            row = self.train_dataset[self.kept_row]
            _, start, stop = row["spans"]
            ids = torch.tensor([row["input_ids"][:stop]], device=self.args.device)
            found = self._observe({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            self._postfix = KV(*(tuple(t[:, :, start:stop].clone() for t in part) for part in found))
        return self._postfix

    def _observe(self, rows: dict[str, Any]) -> KV:
        capture = PrefixCapture(None, rows=None)
        # A frozen copy has not been given autocast by accelerate; the adapter's model has, and it may be given twice.
        context = self._initially()
        with torch.no_grad(), self.accelerator.autocast(), context as initial, keys_before_rope(initial) as keys:
            initial(**rows, past_key_values=capture, use_cache=False, logits_to_keep=1)
        found = capture.captured()
        if not self._checked:
            check_before_rope(keys, found)
            self._checked = True
        return KV(tuple(keys), found.values).detach()


def _taken(kv: KV, at: Tensor) -> KV:
    """The keys and values at these places, `[rows, kv_heads, most, head_dim]`; at -1 stands whatever is first."""
    index = at.clamp(min=0)[:, None, :, None]
    return KV(*(tuple(t.gather(2, index.expand(-1, t.shape[1], -1, t.shape[3])) for t in part) for part in kv))
