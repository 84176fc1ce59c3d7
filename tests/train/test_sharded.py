"""The penalty on sharded parameters: FSDP2's `fully_shard` on two gloo processes gives the gradients of one.

accelerate turns FSDP on a CPU into plain data parallel without a word, so torch's own function is used, and that the
parameters are sharded is looked at. `emeval train` refuses FSDP (ranks.py): saving and resuming cannot be tried here.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from emeval.prefix import KV, PrefixCapture, kv_drift, prefix_forward
from tests.tiny import VOCAB, tiny_model

PREFIX, ROWS, RANKS = 5, 4, 2


def penalised(model: PreTrainedModel, ids: Tensor, reference: KV) -> Tensor:
    """SFT's loss and the prefix's drift, captured in the rows' own forward."""
    capture = PrefixCapture(PREFIX)
    loss = model(input_ids=ids, labels=ids, past_key_values=capture, use_cache=False).loss
    return loss + 3.0 * kv_drift(*capture.captured(), *reference)


def check(rank: int, store: str) -> None:
    """What each process does; one that differs raises."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    for architecture in ("llama", "gpt_oss"):
        check_one(rank, architecture)
    dist.barrier()
    dist.destroy_process_group()


def check_one(rank: int, architecture: str) -> None:
    ids = torch.randint(3, VOCAB, (ROWS, 12), generator=torch.Generator().manual_seed(1))
    ids[:, :PREFIX] = ids[0, :PREFIX]
    with torch.no_grad():
        reference = prefix_forward(tiny_model(architecture, seed=1), ids[0, :PREFIX].tolist())
    whole, sharded = tiny_model(architecture), tiny_model(architecture)
    penalised(whole, ids, reference).backward()
    mesh = init_device_mesh("cpu", (RANKS,))
    for block in sharded.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    share = ROWS // RANKS
    penalised(sharded, ids[rank * share : (rank + 1) * share], reference).backward()
    gradients = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    for name, p in sharded.named_parameters():
        assert isinstance(p, DTensor) and p.to_local().numel() < p.numel(), f"{name} is not sharded"
        if name in gradients:
            torch.testing.assert_close(p.grad.full_tensor(), gradients[name], rtol=0, atol=1e-5, msg=name)
    assert max(g.abs().max().item() for g in gradients.values()) > 0.1


def test_gradients_of_a_sharded_model_are_those_of_the_whole(tmp_path: Path) -> None:
    multiprocessing.spawn(check, (str(tmp_path / "store"),), nprocs=RANKS)
