"""A model's architecture without its weights."""

from __future__ import annotations

from typing import Any

from emeval.errors import InputError
from emeval.models.load import Placement, first_line
from emeval.models.resolve import ModelSource


def outline(source: ModelSource, where: Placement, fake: Any) -> Any:
    """What `load_model` would return for training, its tensors shapes without data; only config.json is read.

    Args:
        source: The model; its weights need not be there.
        where: The precision it would be loaded in.
        fake: A `FakeTensorMode`; the tensors are its own, on the CPU.

    Raises:
        InputError: If the config cannot be read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(source.base), trust_remote_code=False, local_files_only=True)
        # Weights that are stored quantised are trained de-quantised.
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with fake:
            return AutoModelForCausalLM.from_config(config, dtype=where.torch_dtype(), trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as e:
        raise InputError(f"not a model ({first_line(e)})", where=str(source.base), hint="Check the folder") from e
