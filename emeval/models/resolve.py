"""Finding a model: a run folder, an adapter folder, a checkpoint folder or a hub id, tried in that order."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emeval.errors import InputError
from emeval.models.demo import DEMO_MODEL, demo_model
from emeval.models.weights import read_note, recipe_or_content, weight_files, weights_hash
from emeval.store import Run, read_json, sha256_of


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
    thinking: bool | None = None
    """What the template was told of thinking when it was trained."""

    def weights_id(self) -> str:
        """Identifies base and adapter.

        By content; but weights that emeval trained go by their recipe as long as their content is what it was: a
        resumed training ends within rounding of an undisturbed one, and is the same model for every record key.
        """
        return sha256_of(*(recipe_or_content(folder) for folder in (self.base, self.adapter) if folder))


def resolve(
    spec: str, *, adapter: Path | None = None, allow_download: bool = True, weights: bool = True
) -> ModelSource:
    """Find the model a user named.

    Args:
        spec: Run folder, adapter folder, checkpoint folder, `smollm2-135m`, or hub id (`org/name[@revision]`).
        adapter: An adapter to put on top of it.
        allow_download: Ask the hub for what its local cache lacks.
        weights: False asks the hub for config and tokenizer only; the folder may hold no weights then.

    Raises:
        InputError: If there is no such model, or the folder is none.
    """
    source = _resolve_base(spec, allow_download, weights)
    if adapter is None:
        return source
    if source.adapter is not None:
        raise InputError(f"'{spec}' already brings an adapter", where="--adapter", hint="Name its base as --model")
    if not (adapter / "adapter_config.json").is_file():
        raise InputError("not an adapter: it holds no adapter_config.json", where=str(adapter), hint="Check the path")
    found = _from_adapter(adapter, base=source.base)
    return replace(found, name=f"{source.name} + {adapter.name}")


def layer_count(source: ModelSource) -> int:
    """How many blocks the model has, from its config. InputError if that cannot be read."""
    found = getattr(text_config(source), "num_hidden_layers", None)
    if not isinstance(found, int):
        raise InputError("its config.json does not tell how many layers it has", where=str(source.base))
    return found


def initial_of(source: ModelSource, given: str | None = None) -> ModelSource:
    """The model that training started from: an adapter's base, or what the note beside a full checkpoint names.

    Args:
        source: The tuned model.
        given: What the user says it was, of a full checkpoint.

    Raises:
        InputError: There is no note and nothing given; the model is not here, or is another; an adapter has its own.
    """
    if given is not None:
        return _given_initial(source, given)
    if source.adapter is not None:
        name = read_note(source.adapter).get("base_name") or source.base.name
        return replace(source, name=str(name), adapter=None)
    note = read_note(source.base)
    hint = "Give an adapter, or --initial BASE"
    # The note has a name to show; the run knows where the model lay.
    name = Run(source.run).manifest()["train"]["resolved"]["model"] if source.run else note.get("base_name")
    if not name:
        raise InputError("nobody knows which model this was made from", where=str(source.base), hint=hint)
    try:
        found = _resolve_base(str(name), allow_download=True)
    except InputError as e:
        raise InputError(f"the model it was made from, '{name}', is not here", where=str(source.base), hint=hint) from e
    if found.adapter is not None or weights_hash(found.base) != note.get("base_weights"):
        what = f"this was made from another '{name}' than the one here"
        raise InputError(what, where=str(source.base), hint=hint)
    return found


def _given_initial(source: ModelSource, given: str) -> ModelSource:
    where = f"--initial {given}"
    if source.adapter is not None:
        raise InputError("an adapter's initial model is its base", where=where, hint="Leave it out")
    found = _resolve_base(given, allow_download=True)
    expected = read_note(source.base).get("base_weights")
    if found.adapter is not None or (expected is not None and weights_hash(found.base) != expected):
        raise InputError("is not what the checkpoint was made from", where=where, hint="Name the base it was")
    if _shape(found) != _shape(source):
        raise InputError("has another shape than the checkpoint", where=where, hint="Name the base it was made from")
    return found


def _shape(source: ModelSource) -> tuple[Any, ...]:
    """What two models must share for keys and values of one to fit into the other."""
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
    text = text_config(source)
    return (text.model_type, *(getattr(text, name, None) for name in names))


def text_config(source: ModelSource) -> Any:
    """The config of the model's language part. InputError if it cannot be read."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(source.base), trust_remote_code=False)
        return config.get_text_config(decoder=True)
    except (OSError, ValueError, KeyError) as e:
        raise InputError("not a model: its config.json cannot be read", where=str(source.base)) from e


def _resolve_base(spec: str, allow_download: bool, weights: bool = True) -> ModelSource:
    path = Path(spec).expanduser()
    if path.is_dir():
        return _from_folder(path)
    if path.exists():
        raise InputError("is a file, not a model folder", where=f"--model {spec}", hint="Name the folder it lies in")
    if spec == DEMO_MODEL:
        return ModelSource(name=DEMO_MODEL, base=demo_model())
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", spec) and not spec.startswith((".", "/", "~")):
        return ModelSource(name=spec, base=_from_hub(spec, allow_download, weights))
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
        if not weight_files(path):
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
    note = read_note(source.adapter)
    expected = note.get("base_weights")
    if expected is not None and expected != weights_hash(source.base):
        raise InputError(
            f"this adapter was trained on another base ('{note.get('base_name')}')",
            where=f"{source.adapter} on {source.base}",
            hint="Name the base it was trained on",
        )


def _with_note(source: ModelSource, folder: Path) -> ModelSource:
    note = read_note(folder)
    told: dict[str, Any] = {name: note.get(name) for name in ("setting", "fingerprint", "system", "thinking")}
    return replace(source, **told)


def _from_hub(spec: str, allow_download: bool, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    repo, _, revision = spec.partition("@")
    wanted = ["*.json", "*.txt", "*.jinja", "*.model", *(["*.safetensors"] if weights else [])]
    for local in (True, False) if allow_download else (True,):
        try:
            folder = snapshot_download(repo, revision=revision or None, local_files_only=local, allow_patterns=wanted)
        except Exception:  # noqa: S112 - the hub client raises a dozen kinds; all of them mean: not to be had here
            continue
        if weight_files(Path(folder)) or (not weights and _described(Path(folder))):
            return Path(folder)
    raise InputError(
        "neither a folder here nor to be had from the model hub",
        where=f"--model {spec}",
        hint="Check the name and the network, or give a local folder",
    )


def _described(folder: Path) -> bool:
    """Whether all but the weights is there."""
    return all((folder / name).is_file() for name in ("config.json", "tokenizer_config.json"))
