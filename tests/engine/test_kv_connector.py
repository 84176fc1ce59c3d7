"""The connector that vLLM loads, driven as vLLM drives it, with vLLM's base classes stood in for; no server."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

import emeval.engine

SOURCE = Path(emeval.engine.__file__).with_name("kv_connector.py")
BLOCK = 4
IDS = [7, 8, 9, 10, 11, 12]  # one block and a half


class Tensors(NamedTuple):
    ids: torch.Tensor
    cumulated: None = None

    @staticmethod
    def empty_cpu(positions: int, per_position: int) -> Tensors:
        return Tensors(torch.full((positions, per_position), 99_999))


class Base:
    def __init__(self, vllm_config: Any, role: str, kv_cache_config: Any) -> None: ...

    def _get_connector_metadata(self) -> Any:
        return self.step  # type: ignore[attr-defined]


@pytest.fixture
def connector(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    base = ModuleType("base")
    base.KVConnectorBase_V1, base.KVConnectorMetadata = Base, object  # type: ignore[attr-defined]
    base.KVConnectorRole = SimpleNamespace(WORKER="worker", SCHEDULER="scheduler")  # type: ignore[attr-defined]
    outputs = ModuleType("outputs")
    outputs.LogprobsTensors = Tensors  # type: ignore[attr-defined]
    monkeypatch.setattr(Tensors, "empty_cpu", Tensors.empty_cpu)  # put back afterwards
    monkeypatch.setitem(sys.modules, "vllm.distributed.kv_transfer.kv_connector.v1.base", base)
    monkeypatch.setitem(sys.modules, "vllm.v1.outputs", outputs)
    spec = importlib.util.spec_from_file_location("kv_connector_alone", SOURCE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


Make = Callable[..., Any]


class FullAttentionSpec(NamedTuple):
    block_size: int = BLOCK


class SlidingWindowSpec(NamedTuple):
    block_size: int = BLOCK


class MLAAttentionSpec(NamedTuple):
    block_size: int = BLOCK


@pytest.fixture
def make(connector: ModuleType, tmp_path: Path) -> Make:
    """A connector of one role in one mode; `specs` and `config` as vLLM would have them."""

    def made(mode: str, role: str = "worker", specs: tuple[Any, ...] = (FullAttentionSpec(),), **config: Any) -> Any:
        (tmp_path / "prefix.json").write_text(json.dumps(IDS))
        parts: dict[str, Any] = {
            "parallel_config": SimpleNamespace(world_size=1, data_parallel_size=1),
            "cache_config": SimpleNamespace(enable_prefix_caching=False),
            "speculative_config": None,
        }
        extra = {"folder": str(tmp_path), "mode": mode}
        vllm = SimpleNamespace(kv_transfer_config=SimpleNamespace(kv_connector_extra_config=extra), **(parts | config))
        groups = [SimpleNamespace(kv_cache_spec=spec) for spec in specs]
        return connector.PrefixPatch(
            vllm, role, SimpleNamespace(num_blocks=9, kv_cache_groups=groups, kv_cache_layout="HND")
        )

    return made


def caches(seed: int, layers: int = 2, block: int = BLOCK, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {f"layer.{n}": torch.randn(9, 3, block, 10, generator=generator).to(dtype) for n in range(layers)}


def run(worker: Any, step: Any) -> None:
    worker.step = step
    worker.start_load_kv(None)
    worker.wait_for_save()


def scheduled(name: str, tokens: int, *, new: Any = None, cached: Any = None) -> Any:
    empty = SimpleNamespace(req_ids=[], new_block_ids=[], num_computed_tokens=[])
    return SimpleNamespace(
        scheduled_new_reqs=[new] if new else [],
        scheduled_cached_reqs=cached or empty,
        num_scheduled_tokens={name: tokens},
    )


def first(name: str, prompt: list[int], *blocks: int) -> Any:
    return SimpleNamespace(req_id=name, prompt_token_ids=prompt, block_ids=(list(blocks),), num_computed_tokens=0)


def request(prompt: list[int] | None) -> Any:
    return SimpleNamespace(prompt_token_ids=prompt, skip_reading_prefix_cache=True)


@pytest.fixture
def saved(make: Make) -> dict[str, Any]:
    """The source's caches, after its blocks 5 and 2 were saved."""
    scheduler, worker, source = make("save", "scheduler"), make("save"), caches(1)
    worker.register_kv_caches(source)
    run(worker, scheduler.build_connector_meta(scheduled("a", 7, new=first("a", [*IDS, 1], 5, 2))))
    return source


def test_saved_blocks_are_written_into_the_first_blocks_of_every_request(make: Make, saved: dict[str, Any]) -> None:
    scheduler, worker, own = make("load", "scheduler"), make("load"), caches(2)
    before = {name: cache.clone() for name, cache in own.items()}
    worker.register_kv_caches(own)
    for blocks in ([3, 8, 6], [4, 7]):
        assert scheduler.get_num_new_matched_tokens(request([*IDS, 20]), 0) == (6, False)
        scheduler.update_state_after_alloc(None, SimpleNamespace(get_block_ids=lambda b=blocks: (b,)), 6)
    run(worker, scheduler.build_connector_meta(scheduled("a", 1)))
    for name, cache in own.items():
        for target, source in ((3, 5), (8, 2), (4, 5), (7, 2)):
            assert torch.equal(cache[target], saved[name][source])
        untouched = [0, 1, 2, 5, 6]
        assert torch.equal(cache[untouched], before[name][untouched])
    assert scheduler.build_connector_meta(scheduled("a", 1)).load == [], "once each"


def test_a_long_prefix_is_saved_when_its_last_part_is_computed(make: Make, tmp_path: Path) -> None:
    scheduler = make("save", "scheduler")
    assert scheduler.build_connector_meta(scheduled("a", 4, new=first("a", [*IDS, 1], 5))).save == []
    rest = SimpleNamespace(req_ids=["a"], new_block_ids=[([2],)], num_computed_tokens=[4])
    assert scheduler.build_connector_meta(scheduled("a", 3, cached=rest)).save == [5, 2]
    later = SimpleNamespace(req_ids=["a"], new_block_ids=[None], num_computed_tokens=[7])
    assert scheduler.build_connector_meta(scheduled("a", 1, cached=later)).save == []


@pytest.mark.parametrize("prompt", [None, [], IDS, IDS[:3], [1, *IDS, 2], [*IDS[:5], 99, 1]])
def test_other_prompts_are_left_alone(make: Make, saved: dict[str, Any], prompt: list[int] | None) -> None:
    scheduler, asked = make("load", "scheduler"), request(prompt)
    assert scheduler.get_num_new_matched_tokens(asked, 0) == (0, False)
    assert asked.skip_reading_prefix_cache
    scheduler.update_state_after_alloc(asked, None, 0)
    assert scheduler.build_connector_meta(scheduled("a", 1)).load == []


def test_prompt_logprobs_keep_the_patch_and_hold_nothing_of_old_memory(
    make: Make, saved: dict[str, Any], connector: ModuleType
) -> None:
    asked = request([*IDS, 20])
    make("load", "scheduler").get_num_new_matched_tokens(asked, 0)
    assert not asked.skip_reading_prefix_cache
    assert (connector.LogprobsTensors.empty_cpu(2, 1).ids == 99_999).all()
    make("load")
    assert (connector.LogprobsTensors.empty_cpu(2, 1).ids == 0).all()


def test_a_prefix_from_vllms_own_cache_is_an_error(make: Make, saved: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="own cache, unpatched"):
        make("load", "scheduler").get_num_new_matched_tokens(request([*IDS, 20]), 4)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"specs": (FullAttentionSpec(), SlidingWindowSpec())}, "this model has FullAttentionSpec, SlidingWindowSpec"),
        ({"specs": (SlidingWindowSpec(),)}, "plain full attention, this model has SlidingWindowSpec"),
        ({"specs": (MLAAttentionSpec(),)}, "this model has MLAAttentionSpec"),
        ({"specs": ()}, "this model has none"),
        ({"parallel_config": SimpleNamespace(world_size=2, data_parallel_size=1)}, "must run on one device"),
        ({"cache_config": SimpleNamespace(enable_prefix_caching=True)}, "prefix caching must be off"),
        ({"speculative_config": "eagle"}, "speculative decoding"),
    ],
)
@pytest.mark.parametrize("role", ["scheduler", "worker"])
def test_what_could_give_a_wrong_patch_stops_the_server(make: Make, wrong: dict[str, Any], why: str, role: str) -> None:
    with pytest.raises(ValueError, match=f"^prefix patching: .*{why}") as caught:
        make("save", role, **wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("own", "why"),
    [
        (caches(2, dtype=torch.bfloat16), "saved blocks of layer.0 are .*float32.* this server's would be .*bfloat16"),
        (caches(2, block=8), r"are \(\[2, 3, 4, 10\].* would be \(\[2, 3, 8, 10\]"),
        (caches(2, layers=3), "do not have the same layers"),
        ({"layer.0": torch.zeros(2, 9, 4)}, r"not laid out by blocks: \[2, 9, 4\]"),
    ],
)
def test_blocks_that_do_not_fit_stop_the_server(make: Make, saved: dict[str, Any], own: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make("load").register_kv_caches(own)


def test_another_block_size_stops_the_server(make: Make, saved: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"saved with .*'4'.*, but this server has .*'8'"):
        make("load", specs=(FullAttentionSpec(block_size=8),)).register_kv_caches(caches(2))
