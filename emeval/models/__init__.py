"""Models: from what a user types to weights on disk, to a loaded model.

Nothing here executes code that comes with a checkpoint, and only safetensors are read.
"""

from emeval.models.demo import DEMO_MODEL, demo_model
from emeval.models.load import (
    OneAfterAnother,
    Placement,
    eos_ids,
    free_memory,
    input_embeddings,
    load_model,
    load_tokenizer,
    placement,
    without_adapter,
)
from emeval.models.merge import merge_adapter
from emeval.models.outline import outline
from emeval.models.pair import OTHER, Pair, Which, load_pair
from emeval.models.resolve import ModelSource, initial_of, layer_count, resolve, text_config
from emeval.models.weights import read_note, weight_files, weights_hash, write_note
from emeval.store import cache_dir

__all__ = [
    "DEMO_MODEL",
    "OTHER",
    "ModelSource",
    "OneAfterAnother",
    "Pair",
    "Placement",
    "Which",
    "cache_dir",
    "demo_model",
    "eos_ids",
    "free_memory",
    "initial_of",
    "input_embeddings",
    "layer_count",
    "load_model",
    "load_pair",
    "load_tokenizer",
    "merge_adapter",
    "outline",
    "placement",
    "read_note",
    "resolve",
    "text_config",
    "weight_files",
    "weights_hash",
    "without_adapter",
    "write_note",
]
