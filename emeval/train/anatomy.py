"""How many weights a run's model has, which of them are trained, and which the adapter leaves as they are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from emeval import models
from emeval.train.build import lora_config
from emeval.train.ledger import Ledger, converting
from emeval.train.plan import Plan


@dataclass(frozen=True)
class Anatomy:
    """Numbers of parameters, of the architecture that config.json describes."""

    parameters: int
    """The base model's, tied ones once."""
    trained: int
    """Those with gradients: the adapter's, or for full finetuning all."""
    left_out: dict[str, int]
    """Matrices of the base that LoRA leaves as they are, by the name of the module that holds them."""


def anatomy(prepared: Plan, where: models.Placement) -> Anatomy:
    """Count them. InputError if the config cannot be read."""
    ledger = Ledger()
    with converting(), ledger:
        model = models.outline(prepared.source, where, ledger.fake)
        parameters = sum(p.numel() for p in model.parameters())
        if prepared.config.full:
            return Anatomy(parameters, parameters, {})
        from peft import get_peft_model

        model = get_peft_model(model, lora_config(prepared.config, model))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return Anatomy(parameters, trained, _left_out(model))


def _left_out(model: Any) -> dict[str, int]:
    found: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        module, _, _ = name.rpartition(".")
        if not parameter.requires_grad and parameter.dim() > 1 and not module.endswith(".base_layer"):
            found[module.rpartition(".")[2]] += parameter.numel()
    return dict(found.most_common())
