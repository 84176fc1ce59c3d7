"""Base and adapter as one checkpoint, for servers that take none or serve it slowly."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path


def merge_adapter(base: str | Path, adapter: str | Path, out_dir: str | Path, *, dtype: str = "auto") -> Path:
    """Write the checkpoint that base and adapter make together, with its tokenizer; returns its folder.

    Args:
        base: Checkpoint folder.
        adapter: Adapter folder.
        out_dir: Where to write.
        dtype: "auto" keeps the base's. A wider one keeps what rounding would take from the adapter.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, use_safetensors=True)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    # Saving refuses some generation configs that loading takes (a temperature without sampling), so it goes as a file.
    merged.generation_config = GenerationConfig()
    merged.save_pretrained(out_dir)
    AutoTokenizer.from_pretrained(base).save_pretrained(out_dir)
    with contextlib.suppress(FileNotFoundError):
        shutil.copy(Path(base) / "generation_config.json", Path(out_dir) / "generation_config.json")
    return Path(out_dir)
