"""A finetuned model together with the model it was made from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

from emeval.models.load import Placement, load_model, without_adapter
from emeval.models.resolve import ModelSource

Which = Literal["initial", "tuned"]
OTHER: dict[Which, Which] = {"tuned": "initial", "initial": "tuned"}


class Pair:
    """Both models, loaded. With an adapter they are one in memory, of which the adapter is switched on and off.

    Args:
        both: The tuned model.
        apart: The initial model where it is another checkpoint: after full finetuning.
    """

    def __init__(self, both: Any, apart: Any = None) -> None:
        self.both, self.apart = both, apart
        self._adapter_off = False

    @contextlib.contextmanager
    def acting(self, which: Which) -> Iterator[Any]:
        """Within it, the model yielded is the one named, whichever was acting around it."""
        if self.apart is not None:
            yield self.apart if which == "initial" else self.both
        elif which == "initial" and not self._adapter_off:
            with without_adapter(self.both):
                self._adapter_off = True
                try:
                    yield self.both
                finally:
                    self._adapter_off = False
        elif which == "tuned" and self._adapter_off:
            self.both.base_model.enable_adapter_layers()
            self._adapter_off = False
            try:
                yield self.both
            finally:
                self.both.base_model.disable_adapter_layers()
                self._adapter_off = True
        else:
            yield self.both

    def holding(self, which: Which) -> Any:
        """The model in memory that acts as the one named."""
        return self.apart if which == "initial" and self.apart is not None else self.both


def load_pair(source: ModelSource, initial: ModelSource, where: Placement) -> Pair:
    """A tuned model with its initial one, in eval mode.

    Args:
        source: The tuned model.
        initial: The initial one; with an adapter it is not loaded again.
        where: Device and precision of both.
    """
    if source.adapter is not None:
        return Pair(load_model(source, where))
    return Pair(load_model(source, where), load_model(initial, where))
