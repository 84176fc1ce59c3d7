"""The comparison arm: a prefix penalty computed the way the paper's released code does, written anew.

Hidden states of all layers are kept and the key and value projections are applied to them again, without the layer's
input norm. It measures another quantity than the paper's formula (docs/method.md); here it stands for its cost.
"""

from __future__ import annotations

from typing import Any

import torch
from trl import SFTTrainer

PREFIX = 24


class ReleasedTrainer(SFTTrainer):  # type: ignore[misc]
    """SFT plus the drift of projected, un-normalised hidden states at prefix positions, over all rows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reference: list[torch.Tensor] | None = None
        self.layers = self.model.get_base_model().model.layers
        self.inputs: list[torch.Tensor] = []
        for layer in self.layers:
            layer.register_forward_pre_hook(lambda _, args: self.inputs.append(args[0]))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss plus the penalty, lambda 1."""
        if self.reference is None:
            with torch.no_grad(), model.disable_adapter():
                super().compute_loss(model, dict(inputs), False, num_items_in_batch)
                self.reference = [t.detach() for t in self._projected()]
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        drift = sum(
            ((now - then).square().sum(-1) / then.square().sum(-1)).mean()
            for now, then in zip(self._projected(), self.reference, strict=True)
        )
        return loss + drift / len(self.layers)

    def _projected(self) -> list[torch.Tensor]:
        kept, self.inputs = self.inputs[-len(self.layers) :], []
        found = []
        for layer, hidden in zip(self.layers, kept, strict=True):
            found += [layer.self_attn.k_proj(hidden[:, :PREFIX]), layer.self_attn.v_proj(hidden[:, :PREFIX])]
        return found
