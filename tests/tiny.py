"""Tiny random models of the seven architectures the tests run on. Real transformers code, a few thousand weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import AutoConfig

ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "phi3", "gpt_oss", "gemma3_text")
VOCAB = 128

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_dropout": 0.0,
}
_OWN = {
    "qwen3": {"head_dim": 8},
    "mistral": {"head_dim": 8, "sliding_window": 16},
    "gemma3_text": {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "gpt_oss": {"head_dim": 8, "sliding_window": 16, "num_local_experts": 2, "num_experts_per_tok": 1},
}


def tiny_model(
    architecture: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object
) -> PreTrainedModel:
    """A random model with weights large enough that keys, values and logits differ visibly between inputs."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(architecture, **(_COMMON | _OWN.get(architecture, {}) | changes))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:
                p.normal_(0.0, 0.2)
            elif "bias" in name or "sinks" in name:
                p.normal_(0.0, 0.1)
    return model.to(dtype).eval()


def save_checkpoint(folder: Path, template: str = "chatml") -> Path:
    """A random Llama with a byte-level tokenizer and a chat template, as safetensors; returns its folder."""
    from tests.tokenizers_for_tests import byte_level

    tokenizer = byte_level(template)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    tiny_model(
        "llama", vocab_size=len(tokenizer), max_position_embeddings=1024, pad_token_id=ids["eos_token_id"], **ids
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
