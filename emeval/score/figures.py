"""Numbers as commands and tables print them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emeval.types import Estimate

SHARES = ("rate", "misaligned", "share")
"""Measures between 0 and 1, by the word their names begin with; shown in percent."""


def interval(estimate: Estimate, times: float = 1.0, digits: int = 1) -> str:
    """A number with its interval, `12.3 [10.1, 14.5]`; a dash where nothing was measured."""
    if estimate.value is None:
        return "–"
    bounds = [bound for bound in (estimate.low, estimate.high) if bound is not None]
    shown = ", ".join(f"{times * bound:.{digits}f}" for bound in bounds)
    return f"{times * estimate.value:.{digits}f}" + (f" [{shown}]" if len(bounds) == 2 else "")


def measure(name: str, estimate: Estimate) -> str:
    """A named measure in its own unit: percent, nats with three digits, or points."""
    word = name.split(",")[0].split()[0]
    if word in SHARES:
        return f"{interval(estimate, 100)} %"
    return interval(estimate, digits=3 if word == "margin" else 1)
