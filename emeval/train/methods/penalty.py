"""What the regularised methods have in common: a penalty beside TRL's loss, its weight, its log, the initial model."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from emeval.train.methods.shared_prefix import SharedPrefixConfig, SharedPrefixTrainer


@dataclass
class PenaltyConfig(SharedPrefixConfig):
    """`trl.SFTConfig` for a loss with a penalty."""

    clip_apart: bool = field(
        default=False,
        metadata={
            "help": "Clip the gradients of loss and penalty each by itself, to max_grad_norm, and log both norms. "
            "Clipped together, a large penalty makes the loss's own step smaller: a hidden learning rate."
        },
    )


def check_weight(name: str, value: float) -> None:
    """ValueError for what is no weight of a penalty."""
    if not 0.0 <= value < float("inf"):
        raise ValueError(f"{name} is {value}; it must be a number from 0 up")


class PenaltyTrainer(SharedPrefixTrainer):
    """`trl.SFTTrainer` whose loss gets a penalty. Logs it, before its weight, and `sft_loss` beside TRL's own loss.

    Raises:
        ValueError: With label smoothing or a loss function of one's own: TRL runs the model twice then, and which of
            the forwards was observed would be chance.
    """

    _logged_as: str
    """What the penalty is called in the log."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.label_smoother is not None or self.compute_loss_func is not None:
            raise ValueError("a penalty goes with TRL's own loss: no label smoothing and no compute_loss_func")
        self._apart: list[Tensor] | None = None
        """The penalty's gradients of this step so far, a tensor a trainable parameter."""
        if self.args.clip_apart:
            self.add_callback(_AddApart(self))

    @property
    def _weight(self) -> float:
        """Lambda."""
        raise NotImplementedError

    def _penalised(self, result: Any, penalty: Tensor, return_outputs: bool, num_items_in_batch: Any) -> Any:
        """TRL's loss (with outputs, if asked for) plus the weighted penalty, which is a mean over the micro-batch."""
        # As TRL logs its own loss: the mean over processes.
        gathered = self.accelerator.gather(penalty.detach()).mean()
        self._metrics["train"][self._logged_as].append(gathered.item())
        if self._weight == 0:
            return result
        loss, outputs = result if return_outputs else (result, None)
        # The micro-batch's loss arrives divided by the tokens of the whole step; a mean over the micro-batch must be
        # divided by the number of micro-batches, or it counts once for each.
        steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
        weighted = self._weight * penalty.to(loss.device) / steps
        if self.args.clip_apart:
            self._keep_apart(weighted)
            weighted = weighted.detach()
        loss = loss + weighted
        return (loss, outputs) if return_outputs else loss

    def _trained(self) -> list[torch.nn.Parameter]:
        return [p for p in self._inner().parameters() if p.requires_grad]

    def _keep_apart(self, weighted: Tensor) -> None:
        found = torch.autograd.grad(weighted, self._trained(), retain_graph=True, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(self._trained(), found, strict=True)]
        self._apart = gradients if self._apart is None else [a + g for a, g in zip(self._apart, gradients, strict=True)]

    def add_apart(self) -> None:
        """Add the penalty's gradients, clipped by themselves, to those of the loss, which are clipped already."""
        if self._apart is None:
            return
        gradients = [self.accelerator.reduce(g, reduction="mean") for g in self._apart]
        self._apart = None
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.float()) for g in gradients]))
        most = self.args.max_grad_norm or 0.0
        scale = (most / (norm + 1e-6)).clamp(max=1.0) if most > 0 else torch.ones_like(norm)
        for parameter, gradient in zip(self._trained(), gradients, strict=True):
            added = (gradient * scale).to(parameter.dtype)
            parameter.grad = added if parameter.grad is None else parameter.grad + added
        self._metrics["train"]["penalty_grad_norm"].append(norm.item())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log, plus the part of the loss that is SFT's."""
        found = self._metrics["train"].get(self._logged_as)
        if "loss" in logs and found:
            logs["sft_loss"] = logs["loss"] - self._weight * sum(found) / len(found)
        super().log(logs, start_time)


class _AddApart(TrainerCallback):  # type: ignore[misc]
    """Between clipping and the optimiser's step."""

    def __init__(self, trainer: PenaltyTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The loss's gradients are clipped by now."""
        self.trainer.add_apart()


class InitialModel:
    """The model as it was before training: its adapter switched off, or for full finetuning a frozen copy.

    The copy is as large as the model itself. Make this before the first step.
    """

    def __init__(self, model: Any) -> None:
        self._model, self._copy = model, None
        if not hasattr(model, "disable_adapter"):
            self._copy = copy.deepcopy(model).eval().requires_grad_(False)
            # TRL has put a forward of its own on the model, bound to that model: the copy's would run the tuned one.
            self._copy.__dict__.pop("forward", None)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Any]:
        """Within it, the initial model, without dropout."""
        if self._copy is not None:
            yield self._copy
            return
        training = self._model.training
        self._model.eval()
        try:
            with self._model.disable_adapter():
                yield self._model
        finally:
            self._model.train(training)
