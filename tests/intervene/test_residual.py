"""Layer-wise patching of the prefix's residual stream: identities, and a forward done by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import ARCHITECTURES

from emeval.intervene.kv import patched_prefix
from emeval.intervene.residual import patched_residual
from emeval.models import Pair, Which
from emeval.prefix import KV, decoder
from tests.intervene.pairs import PAIRS, P, lora_pair, prompts

PREFIX = prompts(0)[0][:P]
LAYERS = 3


def alike(a: KV, b: KV, layers: range, atol: float = 0.0) -> None:
    for layer in layers:
        for x, y in ((a.keys[layer], b.keys[layer]), (a.values[layer], b.values[layer])):
            torch.testing.assert_close(x, y, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_before_it_are_the_tuned_models_and_the_others_run_on_from_the_initial_stream(
    architecture: str, kind: str
) -> None:
    pair = PAIRS[kind](architecture)
    tuned, initial = patched_prefix(pair, PREFIX, "tuned"), patched_prefix(pair, PREFIX, "initial")
    for layer in range(LAYERS):
        found = patched_residual(pair, PREFIX, layer)
        alike(found, tuned, range(layer))
        alike(found, by_hand(pair, layer), range(layer, LAYERS), atol=1e-6)
        if layer:
            assert not torch.allclose(found.keys[layer], tuned.keys[layer], atol=1e-4)
            assert not torch.allclose(found.values[layer], initial.values[layer], atol=1e-4)


def by_hand(pair: Pair, layer: int) -> KV:
    """Hidden states as transformers hands them out, put in by overwriting the block before in another way: the output
    of block `layer - 1`, or the embeddings."""
    with torch.no_grad(), pair.acting("initial") as model:
        states = decoder(model)(input_ids=torch.tensor([PREFIX]), output_hidden_states=True).hidden_states[layer]
    with torch.no_grad(), pair.acting("tuned") as model:
        inner: Any = decoder(model)
        before = inner.embed_tokens if layer == 0 else inner.layers[layer - 1]
        hook = before.register_forward_hook(lambda *_: states)
        try:
            return patched_prefix(pair, PREFIX, "tuned")
        finally:
            hook.remove()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_embeddings_that_training_left_alone_change_nothing(architecture: str) -> None:
    pair = lora_pair(architecture)
    alike(patched_residual(pair, PREFIX, 0), patched_prefix(pair, PREFIX, "tuned"), range(LAYERS))


@pytest.mark.parametrize("into", ["tuned", "initial"])
def test_no_token_is_no_patch_and_one_token_moves_those_behind_it_only(into: Which) -> None:
    pair = lora_pair("llama")
    own = patched_prefix(pair, PREFIX, into)
    alike(patched_residual(pair, PREFIX, 1, [], into=into), own, range(LAYERS))
    found = patched_residual(pair, PREFIX, 1, [4], into=into)
    for layer in range(1, LAYERS):
        moved = (found.keys[layer] - own.keys[layer]).abs().amax(dim=(0, 1, 3)) > 1e-5
        assert moved.tolist() == [t == 4 if layer == 1 else t >= 4 for t in range(P)]


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no layer 3"):
        patched_residual(lora_pair("llama"), PREFIX, 3)
