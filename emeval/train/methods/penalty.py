"""What the regularised methods have in common: a penalty beside TRL's loss, its weight, its log, the initial model."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor

from emeval.train.methods.shared_prefix import SharedPrefixTrainer


class PenaltyTrainer(SharedPrefixTrainer):
    """`trl.SFTTrainer` whose loss gets a penalty. Logs it, before its weight, and `sft_loss` beside TRL's own loss.

    Raises:
        ValueError: With label smoothing or a loss function of one's own: TRL runs the model twice then, and which of
            the forwards was observed would be chance.
    """

    _logged_as: ClassVar[str]
    """What the penalty is called in the log."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.label_smoother is not None or self.compute_loss_func is not None:
            raise ValueError("a penalty goes with TRL's own loss: no label smoothing and no compute_loss_func")

    @property
    def _weight(self) -> float:
        """Lambda."""
        raise NotImplementedError

    def _penalised(self, result: Any, penalty: Tensor, return_outputs: bool, num_items_in_batch: Any) -> Any:
        """TRL's loss (with outputs, if asked for) plus the weighted penalty, which is a mean over the micro-batch."""
        # As TRL logs its own loss: the mean over processes.
        gathered = self.accelerator.gather_for_metrics(penalty.detach()).mean()
        self._metrics["train"][self._logged_as].append(gathered.item())
        if self._weight == 0:
            return result
        loss, outputs = result if return_outputs else (result, None)
        # The micro-batch's loss arrives divided by the tokens of the whole step; a mean over the micro-batch must be
        # divided by the number of micro-batches, or it counts once for each.
        steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
        loss = loss + self._weight * penalty.to(loss.device) / steps
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log, plus the part of the loss that is SFT's."""
        found = self._metrics["train"].get(self._logged_as)
        if "loss" in logs and found:
            logs["sft_loss"] = logs["loss"] - self._weight * sum(found) / len(found)
        super().log(logs, start_time)


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
