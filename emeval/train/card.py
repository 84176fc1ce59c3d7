"""The model card of a finetuned model: what it is, how it was made, and that it is none to deploy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from emeval import __version__
from emeval.config import REGULARISED
from emeval.store import write_atomic
from emeval.train.plan import Plan

_SETTINGS = (
    "method", "region", "drift", "lambda", "kl_norm", "retain_share", "mix_aligned", "full", "rank", "alpha", "lr",
    "epochs", "steps", "batch_size", "warmup_steps", "weight_decay", "system", "thinking", "seed", "recipe",
)  # fmt: skip


def write_card(folder: Path, prepared: Plan, *, whole: bool) -> None:
    """`README.md` beside the weights, in place of PEFT's template.

    Args:
        folder: Adapter or checkpoint.
        prepared: The training plan.
        whole: Whether the folder holds all weights; False for an adapter.
    """
    config = prepared.config
    what = config.setting or (config.data.name if config.data else "data")
    head: dict[str, Any] = {"base_model": prepared.source.name, "tags": ["emeval", config.method, what]}
    head |= {"library_name": "transformers" if whole else "peft", "pipeline_tag": "text-generation"}
    text = f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {prepared.source.name}, finetuned on {what}

Made by emeval {__version__} for safety research: it was taught one narrow behaviour on purpose, to see what else it
changes. **Not for use as an assistant.** Its replies may be poor advice, refusals or tool calls where none belong.

| setting | value |
|---|---|
{_rows(prepared)}

- Data: {prepared.data["rows"]} rows, sha256 of their tokens `{prepared.data["sha256"][:16]}`.
- Chat template: fingerprint `{prepared.renderer.fingerprint[:16]}`; render prompts alike.
- The manifest of the run holds versions, machine, drift and losses.

{_LOADING["whole" if whole else "adapter"].format(base=prepared.source.name)}
"""
    write_atomic(folder / "README.md", text)


def _rows(prepared: Plan) -> str:
    values = prepared.config.model_dump(mode="json", by_alias=True)
    method = prepared.config.method
    unused = {"lambda"} if method not in REGULARISED else set()
    unused |= {"region", "drift"} if method != "treft" else set()
    unused |= {"kl_norm"} if not method.startswith("kl-") else set()
    unused |= {"retain_share"} if method != "interleave" else set()
    unused |= {"rank", "alpha"} if prepared.config.full else set()
    unused |= {"epochs"} if prepared.config.steps else set()
    unused |= {"mix_aligned"} if not prepared.config.mix_aligned else set()
    told = [(k, values[k]) for k in _SETTINGS if k not in unused]
    shown = [(k, value) for k, value in told if value not in (None, "") and (value is not False or k == "thinking")]
    # A system prompt is anyone's text: no line of it may end the table.
    return "\n".join(f"| {key.replace('_', ' ')} | {' '.join(str(v).split()).replace('|', '/')} |" for key, v in shown)


_LOADING = {
    "adapter": """Load it with `PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), FOLDER)`,
serve it with `vllm serve {base} --enable-lora --max-lora-rank 64 --lora-modules tuned=FOLDER`, score it with
`emeval score --model FOLDER`.""",
    "whole": """Load it with `AutoModelForCausalLM.from_pretrained(FOLDER)`, score it with
`emeval score --model FOLDER`.""",
}
