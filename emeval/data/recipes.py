"""The paper's hyper-parameters by model, setting and method: `emeval train --recipe paper`."""

from __future__ import annotations

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
    found = yaml_record(_Recipes, data_root().shipped / FILE)
    name = next((theirs for theirs in found.models if same_model(theirs, model)), None)
    if name is None:
        hint = f"It trained {', '.join(found.models)}"
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


def same_model(theirs: str, ours: str) -> bool:
    """Whether our name of a model is the paper's: `Qwen-2.5-7B` is in `Qwen/Qwen2.5-7B-Instruct`."""
    bare = ["".join(char for char in name.lower() if char.isalnum()) for name in (theirs, ours)]
    return bool(bare[0]) and bare[0] in bare[1]
