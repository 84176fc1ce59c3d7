"""The paper's hyper-parameters by model, setting and method: `emeval train --recipe paper`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from emeval.data.files import yaml_record
from emeval.data.root import data_root
from emeval.errors import InputError
from emeval.types import Record

FILE = Path("results") / "paper" / "recipes.yaml"
Cell = tuple[float, float] | tuple[float, float, float]


class _Model(Record):
    hub: str
    sft: dict[str, Cell]
    treft: dict[str, Cell]
    own: dict[str, Any] = Field(default_factory=dict)
    """What differs from the common settings."""
    region: str = "prefix"


class _Recipes(Record):
    common: dict[str, Any]
    kl: dict[str, Any]
    models: dict[str, _Model]


def paper_recipe(model: str, setting: str | None, method: str) -> dict[str, Any]:
    """The paper's training settings, by the names that options and `--config` have.

    Args:
        model: As the user names it: `Qwen/Qwen2.5-7B-Instruct`, or a folder called so.
        setting: Domain or behaviour.
        method: As `--method`.

    Raises:
        InputError: The paper did not train this model so; its models or settings are named.
    """
    found = _recipes()
    name = paper_model(model)
    if name is None:
        hint = f"It trained {', '.join(m.hub for m in found.models.values())}"
        raise InputError(f"the paper has no settings for '{model}'", where="--recipe paper", hint=hint)
    recipe = found.models[name]
    cells = recipe.treft if method == "treft" else recipe.sft
    if setting not in cells:
        hint = f"There are some for {', '.join(cells)}"
        what = f"the paper has no settings for {name}, {method} and '{setting}'"
        raise InputError(what, where="--recipe paper", hint=hint)
    values = found.common | recipe.own | dict(zip(("lr", "epochs", "lambda"), cells[setting], strict=False))
    if method == "treft" and recipe.region != "prefix":
        values["region"] = recipe.region
    if method.startswith("kl-"):
        values |= found.kl
    return values


def paper_model(name: str) -> str | None:
    """The paper's name of a model, by the last part of its hub id or folder; None for one it did not train.

    A base model, a mirror under another name or a variant is another model.
    """
    last = Path(name.partition("@")[0]).name.lower()
    return next((theirs for theirs, m in _recipes().models.items() if Path(m.hub).name.lower() == last), None)


@cache
def _recipes() -> _Recipes:
    return yaml_record(_Recipes, data_root().shipped / FILE)
