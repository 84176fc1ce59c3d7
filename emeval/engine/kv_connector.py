"""Prefix patching inside vLLM: a key-value connector that vLLM itself loads. Run by vLLM's interpreter, not by ours.

Keys and values of a prefix are the same in every request that starts with it, so they can be another model's: a first
server saves the cache blocks that hold the prefix, a second one writes them into the first blocks of every request
and counts the prefix as computed. The engine then runs the rest of the prompt, as after a hit of its prefix cache.

The connector's extra config holds `folder` and `mode` ("save" or "load"). The folder holds `prefix.json`, the prefix's
token ids, and, once saved, `blocks.safetensors`: for every layer `[blocks, ...]`, whole physical blocks as the
attention backend lays them out. Whole, since the CPU backend packs a block's keys in an order of its own: single
tokens written into it come out wrong. What the last block holds behind the prefix is overwritten by the request.

This file stands alone: vLLM finds it by PYTHONPATH, in an environment that may have no emeval. Whatever could give a
wrong patch stops the server at its start, with one line that says why.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)
from vllm.v1.outputs import LogprobsTensors


@dataclass
class Step(KVConnectorMetadata):  # type: ignore[misc]
    """What the scheduler asks of the worker in one step: physical block ids, as many a request as hold the prefix."""

    load: list[list[int]] = field(default_factory=list)
    save: list[int] = field(default_factory=list)


class PrefixPatch(KVConnectorBase_V1):  # type: ignore[misc]
    """Saves or loads the blocks of one prefix.

    Raises:
        ValueError: If this model's cache, or what was saved, does not allow an exact patch.
    """

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        extra = vllm_config.kv_transfer_config.kv_connector_extra_config
        self._saves = extra["mode"] == "save"
        self._file = Path(extra["folder"]) / "blocks.safetensors"
        self._ids: list[int] = json.loads((Path(extra["folder"]) / "prefix.json").read_text(encoding="utf-8"))
        self._num_blocks = kv_cache_config.num_blocks
        block_size = _block_size(vllm_config, kv_cache_config)
        self._wanted = -(-len(self._ids) // block_size)
        self._layout = {"block_size": str(block_size), "layout": str(kv_cache_config.kv_cache_layout)}
        self._loads: list[list[int]] = []
        self._saving: dict[str, list[int]] = {}
        self._caches: dict[str, torch.Tensor] = {}
        self._blocks: dict[str, torch.Tensor] = {}
        if role == KVConnectorRole.WORKER and not self._saves:
            _zero_what_is_not_computed()

    # ------------------------------------------------------------------------------------------------- the scheduler

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """How many tokens count as computed: the prefix's, if the prompt starts with it and goes on."""
        if self._saves or not self._starts(request.prompt_token_ids):
            return 0, False
        if num_computed_tokens:
            raise ValueError("prefix patching: the prefix was taken from vLLM's own cache, unpatched")
        # vLLM computes the whole prompt again where its log-probabilities are asked for. For a cache that changes
        # nothing; here it would leave the patch out.
        request.skip_reading_prefix_cache = False
        return len(self._ids), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Note where a request's prefix goes; called again for one that was preempted."""
        if num_external_tokens:
            self._loads.append(blocks.get_block_ids()[0][: self._wanted])

    def build_connector_meta(self, scheduler_output: Any) -> Step:
        """What the worker has to do in this step."""
        step = Step(load=self._loads, save=self._complete(scheduler_output) if self._saves else [])
        self._loads = []
        return step

    def _complete(self, scheduled: Any) -> list[int]:
        """The blocks of a request whose prefix is computed by the end of this step; a long one takes several."""
        for new in scheduled.scheduled_new_reqs:
            if self._starts(new.prompt_token_ids):
                self._saving[new.req_id] = list(new.block_ids[0])
        cached = scheduled.scheduled_cached_reqs
        for name, blocks in zip(cached.req_ids, cached.new_block_ids, strict=True):
            if name in self._saving and blocks:
                self._saving[name] += blocks[0]
        new_counts = {new.req_id: new.num_computed_tokens for new in scheduled.scheduled_new_reqs}
        counts = new_counts | dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for name in self._saving.keys() & counts.keys():
            if counts[name] + scheduled.num_scheduled_tokens[name] >= len(self._ids):
                return self._saving.pop(name)[: self._wanted]
        return []

    def _starts(self, prompt: Sequence[int] | None) -> bool:
        size = len(self._ids)
        return prompt is not None and len(prompt) > size and list(prompt[:size]) == self._ids

    # ---------------------------------------------------------------------------------------------------- the worker

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Take the cache of every layer, `[blocks, ...]`, and what is to be written into it."""
        for name, cache in kv_caches.items():
            if cache.shape[0] != self._num_blocks:
                raise ValueError(f"prefix patching: the cache of {name} is not laid out by blocks: {list(cache.shape)}")
        self._caches = kv_caches
        if not self._saves:
            self._blocks = self._read()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Write the prefix's blocks, before the forward that reads them."""
        load = self._get_connector_metadata().load
        if not load:
            return
        for name, cache in self._caches.items():
            cache[torch.tensor(load, device=cache.device)] = self._blocks[name]

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is left to wait for."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing: blocks are saved whole, when the step has run."""

    def wait_for_save(self) -> None:
        """Save the prefix's blocks."""
        save = self._get_connector_metadata().save
        if not save:
            return
        blocks = {name: cache[torch.tensor(save, device=cache.device)] for name, cache in self._caches.items()}
        begun = self._file.with_suffix(".part")
        save_file({name: block.cpu().contiguous() for name, block in blocks.items()}, begun, metadata=self._layout)
        begun.replace(self._file)

    def _read(self) -> dict[str, torch.Tensor]:
        with safe_open(self._file, framework="pt") as saved:
            found = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118  # it is no dict
            layout = saved.metadata()
        if layout != self._layout:
            raise ValueError(f"prefix patching: saved with {layout}, but this server has {self._layout}")
        if found.keys() != self._caches.keys():
            raise ValueError("prefix patching: the two models do not have the same layers")
        for name, cache in self._caches.items():
            was = (list(found[name].shape), found[name].dtype)
            has = ([self._wanted, *cache.shape[1:]], cache.dtype)
            if was != has:
                raise ValueError(f"prefix patching: saved blocks of {name} are {was}, this server's would be {has}")
        return {name: block.to(self._caches[name].device) for name, block in found.items()}


def _block_size(config: Any, cache: Any) -> int:
    """Tokens a block holds.

    Raises:
        ValueError: If a prefix's blocks would not be the whole of its keys and values, or not the same for every rank.
    """
    if config.parallel_config.world_size > 1 or config.parallel_config.data_parallel_size > 1:
        raise ValueError("prefix patching: the model must run on one device, not on several in parallel")
    if config.cache_config.enable_prefix_caching:
        raise ValueError("prefix patching: vLLM's prefix caching must be off, or cached prefixes go unpatched")
    if config.speculative_config is not None:
        raise ValueError("prefix patching: not with speculative decoding, whose draft model has a prefix of its own")
    # A model with sliding and full layers passes: under a connector like this one vLLM keeps whole contexts for both.
    kinds = [type(group.kv_cache_spec).__name__ for group in cache.kv_cache_groups]
    if kinds != ["FullAttentionSpec"]:
        raise ValueError(
            f"prefix patching: needs one cache of plain full attention, this model has {', '.join(kinds) or 'none'}"
        )
    return int(cache.kv_cache_groups[0].kv_cache_spec.block_size)


def _zero_what_is_not_computed() -> None:
    """Make prompt log-probabilities of tokens that were not computed zeros, where vLLM leaves memory as it found it.

    Left alone, ids made of it may be none of the tokenizer's, and the request fails.
    """
    empty = LogprobsTensors.empty_cpu

    def zeros(positions: int, per_position: int) -> Any:
        tensors = empty(positions, per_position)
        for tensor in tensors:
            if tensor is not None:
                tensor.zero_()
        return tensors

    LogprobsTensors.empty_cpu = staticmethod(zeros)
