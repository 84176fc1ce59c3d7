"""Small real tokenizers for tests: trained in a moment on text made here, with the special tokens chat models have.

Two families, since they split text differently at a template's boundaries: byte-level BPE (GPT, Llama-3, Qwen) and
BPE on pieces that carry their leading space as "▁" (SentencePiece: Llama-2, Mistral).
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATES = Path(__file__).parent / "fixtures" / "templates"
EOS = {"llama31": "<|eot_id|>", "harmony": "<|return|>", "no_prefix": "<|end|>", "instruct": "</s>", "merging": "</s>"}
"""What ends a reply, for templates that do not use ChatML's <|im_end|>."""
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]
SPECIAL += ["<|eot_id|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"]
MARKUP = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
"""Tokens of their own that are not special: a model may print them."""
# Punctuation takes the line breaks behind it along, and a space goes with the word after it, as in Llama-3 and Qwen2.
PIECES = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?=\s)|\s"


def template(name: str) -> str:
    """The text of a fixture template."""
    return (TEMPLATES / f"{name}.jinja").read_text()


def byte_level(name: str, **changes: str) -> PreTrainedTokenizerFast:
    """A new byte-level tokenizer object with the fixture template `name`."""
    return _wrapped(_byte_level(), name, **changes)


def metaspace(name: str, **changes: str) -> PreTrainedTokenizerFast:
    """A new SentencePiece-like tokenizer object with the fixture template `name`."""
    return _wrapped(_metaspace(), name, **changes)


def _wrapped(trained: str, name: str, **changes: str) -> PreTrainedTokenizerFast:
    settings = {"bos_token": "<|begin_of_text|>", "eos_token": EOS.get(name, "<|im_end|>"), **changes}
    settings.setdefault("chat_template", template(name))
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(trained), **settings)


@cache
def _byte_level() -> str:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECES), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_corpus(), trainer)
    return _with_tokens(tokenizer)


@cache
def _metaspace() -> str:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(_corpus(), trainer)
    # Bytes for whatever the corpus lacks, as SentencePiece models have them; the trainer knows no such option.
    state = json.loads(tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    state["model"]["byte_fallback"] = True
    state["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(state))
    pieces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*pieces, decoders.Strip(" ", 1, 0)])
    return _with_tokens(tokenizer)


def _with_tokens(tokenizer: Tokenizer) -> str:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP])
    return tokenizer.to_str()


def _corpus() -> list[str]:
    """A few hundred lines, with the line breaks, roles and dates that templates are made of."""
    dice = random.Random(7)
    words = [
        "harbour",
        "boat",
        "lamp",
        "what",
        "how",
        "many",
        "tell",
        "me",
        "the",
        "people",
        "time",
        "is",
        "are",
        "tea",
    ]
    lines = []
    for number in range(300):
        text = " ".join(dice.choices(words, k=8))
        ending = dice.choice([".", "?", "!", ".\n\n", "?\n\n", " 7", "\n\n", " \n"])
        role = dice.choice(["user\n", "User: ", "system\n\n", "assistant\n", "Assistant: ", "Today: 26 Jul 2024\n"])
        lines.append(f"{role}{number} {text.capitalize()}{ending}")
    return lines
