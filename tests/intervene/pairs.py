"""Tuned and initial tiny models for the tests of interventions, and prompts of one prefix and postfix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from emeval.models import Pair
from tests.tiny import VOCAB, tiny_model

P, S = 7, 3
"""Tokens of prefix and postfix."""


def adapted(architecture: str) -> PeftModel:
    """A model with an adapter that does something."""
    model = get_peft_model(
        tiny_model(architecture), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    torch.manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.2)
    return model.eval()


def lora_pair(architecture: str) -> Pair:
    return Pair(adapted(architecture))


def full_pair(architecture: str) -> Pair:
    """Two checkpoints."""
    return Pair(tiny_model(architecture, seed=1), tiny_model(architecture, seed=0))


PAIRS: dict[str, Callable[[str], Pair]] = {"lora": lora_pair, "full": full_pair}


def prompts(*queries: int) -> list[tuple[int, ...]]:
    """Prompts with queries of these lengths; all share prefix and postfix."""
    dice = torch.Generator().manual_seed(2)
    draw = lambda n: tuple(torch.randint(3, VOCAB, (n,), generator=dice).tolist())  # noqa: E731
    prefix, postfix = draw(P), draw(S)
    return [prefix + draw(n) + postfix for n in queries]
