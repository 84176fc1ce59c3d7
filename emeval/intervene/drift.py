"""The drift map: how far a tuned model's prefix has moved, by layer and token; no reply is generated.

Relative squared distance of keys and of values from the initial model's, ||x - x_init||^2 / ||x_init||^2, the terms of
TReFT's penalty before any mean. Between two adapters of one base: the cosine of the changes that they make to each
weight matrix (arXiv 2606.06667, Figure 8), 1 for the same direction, 0 for unrelated ones.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emeval import models
from emeval.chat import Renderer, thinking
from emeval.config import DriftConfig
from emeval.errors import InputError
from emeval.intervene.kv import patched_prefix
from emeval.models import ModelSource, Pair
from emeval.prefix import drift_terms, mean_drift
from emeval.table.drift import DriftMap

_LAYER = re.compile(r"\.(\d+)\.(?:.*\.)?(\w+)$")


def drift(config: DriftConfig) -> DriftMap:
    """The map of one model, with the cosines to another where one is named.

    Raises:
        InputError: A model is not there or has no initial one, the template has no prefix, or the two adapters do not
            change the same matrices of the same base.
    """
    source = models.resolve(config.model, adapter=config.adapter)
    initial = models.initial_of(source, config.initial)
    tokenizer = models.load_tokenizer(source)
    renderer = Renderer(tokenizer, source.system, **thinking(source.thinking))
    prefix = renderer.prefix_ids()
    if not prefix:
        raise InputError("the template puts no token before the question", where=f"--model {config.model}")
    other = models.resolve(config.against) if config.against else None
    if other is not None:
        _check_alike(source, other, config)
    pair = models.load_pair(source, initial, models.placement(config.device, config.dtype))
    terms = drift_terms(*patched_prefix(pair, prefix, "tuned"), *patched_prefix(pair, prefix, "initial"))
    return DriftMap(
        model=source.name,
        initial=initial.name,
        tokens=tuple(tokenizer.convert_ids_to_tokens(list(prefix))),
        total=mean_drift(terms).item(),
        keys=tuple(map(tuple, terms.keys[:, 0].tolist())),
        values=tuple(map(tuple, terms.values[:, 0].tolist())),
        skipped=int(terms.skipped),
        against=other.name if other else None,
        cosines=_cosines(pair, other) if other else {},
    )


def _check_alike(source: ModelSource, other: ModelSource, config: DriftConfig) -> None:
    if source.adapter is None or other.adapter is None:
        raise InputError("two adapters are compared, not checkpoints", where=f"--against {config.against}")
    if models.weights_hash(source.base) != models.weights_hash(other.base):
        what = "this adapter was made for another base"
        raise InputError(what, where=f"--against {config.against}", hint="Name one of the same base")


def _cosines(pair: Pair, other: ModelSource) -> dict[str, tuple[float | None, ...]]:
    """By kind of matrix, a cosine a layer (the mean, of several experts); None where one of the changes is zero."""
    model = pair.both
    before = _changes(model)
    assert other.adapter is not None  # asked before
    device = str(next(model.parameters()).device)
    try:
        model.load_adapter(str(other.adapter), adapter_name="against", torch_device=device)
    except (RuntimeError, ValueError, KeyError, OSError) as e:
        hint = "Name an adapter of the same base"
        raise InputError("this adapter does not fit the base", where=str(other.adapter), hint=hint) from e
    after = _changes(model, "against")
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())[0]
        raise InputError(f"only one of the two changes {odd}", where=str(other.adapter), hint="Train both alike")
    found: dict[str, dict[int, list[float]]] = {}
    for name, change in before.items():
        layer, kind = _place(name)
        norm = change.norm() * after[name].norm()
        of_layer = found.setdefault(kind, {}).setdefault(layer, [])
        of_layer += [((change * after[name]).sum() / norm).item()] if norm > 0 else []
    layers = 1 + max(layer for by_layer in found.values() for layer in by_layer)
    return {
        kind: tuple(sum(c) / len(c) if (c := by_layer.get(layer)) else None for layer in range(layers))
        for kind, by_layer in found.items()
    }


@torch.inference_mode()
def _changes(model: Any, adapter: str = "default") -> dict[str, Tensor]:
    """By module, what its adapter adds to its weight, fp32."""
    return {
        name: module.get_delta_weight(adapter).float()
        for name, module in model.named_modules()
        if adapter in getattr(module, "lora_A", {})
    }


def _place(name: str) -> tuple[int, str]:
    found = _LAYER.search(name)
    return (int(found[1]), found[2]) if found else (0, name.rpartition(".")[2])


def save(found: DriftMap, out: Path) -> list[Path]:
    """Write the map as `drift.json`, and where matplotlib is installed as figures. Returns what was drawn."""
    from emeval.provenance import facts, installed, now
    from emeval.store import write_json
    from emeval.table.drift import drift_plot

    write_json(out / "drift.json", {"schema_version": 1, **found.model_dump(), "written": now(), "made_with": facts()})
    drawn = []
    for suffix in ("svg", "png") if installed("matplotlib") else ():
        drift_plot(found, out / f"drift.{suffix}")
        drawn.append(out / f"drift.{suffix}")
    return drawn
