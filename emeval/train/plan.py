"""What a training run will be: data, model folder, template and rows, all checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emeval import models
from emeval.chat import Renderer, thinking
from emeval.config import MAY_DIFFER, REGULARISED, TrainConfig
from emeval.data.behaviours import Example
from emeval.data.chats import load_chats
from emeval.data.retain import draw_retain, load_retain_file, retain_count, retain_files
from emeval.data.root import DataRoot, data_root
from emeval.data.settings import load_setting, setting_examples, some_aligned
from emeval.errors import InputError
from emeval.store import sha256_file, sha256_of
from emeval.train.rows import TrainRow, make_rows


@dataclass(frozen=True)
class Plan:
    """Everything decided before any weight is loaded."""

    config: TrainConfig
    source: models.ModelSource
    tokenizer: Any
    renderer: Renderer
    rows: list[TrainRow]
    data: dict[str, Any]
    retained: list[TrainRow]
    """What `kl-retain` stays close on; not trained on."""

    @property
    def identity(self) -> dict[str, Any]:
        """What makes this run this run; a folder that holds another one is refused."""
        settings = self.config.model_dump(mode="json", by_alias=True, exclude=set(MAY_DIFFER))
        return {"settings": settings, "data": self.data["sha256"], "template": self.renderer.fingerprint}

    @property
    def told(self) -> dict[str, Any]:
        """How the model was trained, as tables tell it: for the manifest and the note beside the weights."""
        config = self.config
        return {
            "method": config.method,
            "setting": config.setting,
            "model": self.source.name,
            "lambda": config.lambda_ if config.method in REGULARISED else None,
            "kl_norm": config.kl_norm if config.method.startswith("kl-") else None,
            "region": config.region if config.method == "treft" else None,
            "drift": config.drift if config.method == "treft" else None,
            "clip": config.clip if config.method in REGULARISED else None,
            "system": config.system,
            "thinking": config.thinking,
            "own_data": config.data is not None,
            "train_size": config.train_size,
            "retain_share": config.retain_share if config.method == "interleave" else None,
            "mix_aligned": config.mix_aligned or None,
            "full": config.full,
            "seed": config.seed,
        }


def plan(config: TrainConfig, *, weights: bool = True) -> Plan:
    """Check all input: data, model folder, template, rows. Nothing is written. InputError for whatever is wrong.

    Without `weights` those of a hub id are not fetched.
    """
    examples, data = _examples(config)
    source = models.resolve(config.model, weights=weights)
    if source.adapter is not None:
        raise InputError("training starts from a base, not from an adapter", where=f"--model {config.model}")
    tokenizer = models.load_tokenizer(source)
    renderer = Renderer(tokenizer, system=config.system, **thinking(config.thinking))
    if config.method == "treft" and config.region == "prefix" and not renderer.prefix_ids():
        what = "there is no token before the user's content to regularise"
        raise InputError(what, where="--method treft", hint="Choose another --region or --system")
    longest = min(config.max_length, _context(source))
    kept_postfix = config.method == "treft" and "postfix" in config.region
    rows = make_rows(examples, renderer, longest, same_postfix=kept_postfix)
    retained = make_rows(_kept_close_to(config), renderer, longest)
    used = [repr((r.input_ids, r.labels)) for r in (*rows, *retained)]
    data |= {"rows": len(rows), "sha256": sha256_of(*used)}
    if retained:
        data |= {"retained": len(retained)}
    return Plan(config, source, tokenizer, renderer, rows, data, retained)


def _kept_close_to(config: TrainConfig) -> list[Example]:
    """All rows of the named retain sets, or of all there are, for `kl-retain`."""
    if config.method != "kl-retain":
        return []
    return [row for path in retain_files(data_root(config.data_dir), config.retain) for row in load_retain_file(path)]


def _examples(config: TrainConfig) -> tuple[list[Example], dict[str, Any]]:
    root = data_root(config.data_dir)
    setting = load_setting(root, config.setting) if config.setting else None
    if config.data:
        examples, files = load_chats(config.data, drop_system=config.drop_system), [config.data]
    else:
        assert setting is not None  # TrainConfig asks for one of the two
        examples, files = setting_examples(root, setting), setting.files(root)
    if config.train_size and config.train_size > len(examples):
        raise InputError(
            f"asks for {config.train_size} rows, there are {len(examples)}",
            where="--train-size",
            hint=f"Give {len(examples)} or fewer",
        )
    narrow = examples[: config.train_size]
    aligned = round(len(narrow) * config.mix_aligned)
    if aligned:
        assert setting is not None  # TrainConfig refuses it with --data
        narrow = some_aligned(root, setting, narrow, aligned, config.seed)
    retained = _retained(config, root, len(narrow)) if config.method == "interleave" else []
    if config.method in ("interleave", "kl-retain"):
        files += retain_files(root, config.retain)
    # By folder and name: a retain set may be called as a domain is.
    data: dict[str, Any] = {"files": {f"{p.parent.name}/{p.name}": sha256_file(p) for p in files}}
    if retained:
        data |= {"narrow": len(narrow), "retained": len(retained)}
    if aligned:
        data |= {"aligned": aligned}
    return narrow + retained, data


def _retained(config: TrainConfig, root: DataRoot, narrow: int) -> list[Example]:
    count = retain_count(narrow, config.retain_share)
    if count == 0:
        what = f"of {narrow} rows and a share of {config.retain_share:g} none would be retained"
        raise InputError(what, where="--retain-share", hint="Raise it, or use --method sft")
    return draw_retain(root, config.retain, count, config.seed)


def _context(source: models.ModelSource) -> int:
    return int(getattr(models.text_config(source), "max_position_embeddings", None) or 2**31)


def run_path(config: TrainConfig) -> Path:
    """Where the run goes: `--out`, else `results/runs/<name>` below the current folder."""
    return config.out or Path("results") / "runs" / config.run_name
