"""What `emeval train --plan` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emeval.cli.console import clean, result, result_json

if TYPE_CHECKING:
    from emeval.config import TrainConfig
    from emeval.train.forecast import Forecast

_NAMED = 4
"""Kinds of modules that are named; the rest would be small."""


def tell_forecast(settings: TrainConfig, as_json: bool) -> None:
    """Work out what the run would be, and print it."""
    from emeval.train.forecast import forecast

    found = forecast(settings)
    if as_json:
        result_json({"plan": found.as_json()})
    else:
        result("\n".join(f"{name:<11} {text}" for name, text in _lines(found).items() if text))


def _lines(found: Forecast) -> dict[str, str]:
    told, tokens = found.as_json(), found.tokens
    share = 100 * told["trained"] / told["parameters"]
    left = [f"{name} {_count(n)}" for name, n in list(told["not_adapted"].items())[:_NAMED]]
    shape = f"{told['micro_batch']} a forward x {told['accumulation']} x {told['processes']} processes"
    parts = [f"{name} {_size(size)}" for name, size in found.parts.items() if size >= 2**20]
    by = f"; estimated by formula: a step without data failed ({clean(found.formula)})" if found.formula else ""
    each = " a process" if told["processes"] > 1 else ""
    gpus = "GPUs of " if told["device"] == "cuda" else ""
    yes, no = ([name for name, fits in found.fits.items() if fits is wanted] for wanted in (True, False))
    fits = [f"{gpus}{', '.join(yes)}"] if yes else []
    fits += [f"not {gpus}{', '.join(no)}"] if no else []
    prefix = told["shared_prefix"]
    return {
        "run": f"{told['model']}, {told['setting'] or 'own data'}, {told['method']}, {told['device']} {told['dtype']}",
        "parameters": f"{_count(told['parameters'])}, trained {_count(told['trained'])} ({share:.3g} %)",
        "not adapted": ", ".join(left),
        "rows": f"{told['rows']}, of {tokens['mean']:.0f} tokens on average, {tokens['longest']:.0f} the longest",
        "steps": f"{told['steps']} of {told['batch_size']} rows: {shape}",
        "tokens": f"{tokens['step']:.0f} a step, {_count(tokens['all'])} in all",
        "optimiser": told["optimizer"],
        "prefix": "run once for all rows of a forward" if prefix == "yes" else f"run in every row: {prefix}",
        "memory": f"{_size(told['peak_memory_bytes'])}{each} at the most, in {told['peak_at']}{by}",
        "of which": ", ".join(parts),
        "fits": "; ".join(fits),
    }


def _count(number: float) -> str:
    for name, unit in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:.0f}"


def _size(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.0f} MiB"
