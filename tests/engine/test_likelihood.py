"""Teacher-forced log-probabilities against one plain forward a pair, on tiny models of every architecture."""

from __future__ import annotations

import pytest
import torch
from tiny import ARCHITECTURES, tiny_model

from emeval.engine.likelihood import reply_logprobs

SHARED = (5, 9, 12, 7)
PAIRS = [
    ((*SHARED, 21, 22, 23), (31, 32)),
    ((*SHARED, 24), (33,)),
    ((*SHARED, 25, 26, 27, 28, 29), (34, 35, 36, 37)),
]
UNLIKE = [((1, 2, 3), (31, 32)), ((4, 5), (33,))]


def naive(model: torch.nn.Module, prompt: tuple[int, ...], reply: tuple[int, ...]) -> list[float]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *reply]])).logits[0].log_softmax(-1)
    return [logits[len(prompt) + n - 1, token].item() for n, token in enumerate(reply)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("pairs", [PAIRS, UNLIKE, PAIRS[:1]], ids=["shared start", "no shared start", "one"])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_equals_one_forward_a_pair(architecture: str, pairs: list, batch_size: int) -> None:
    model = tiny_model(architecture).eval()
    found = dict(reply_logprobs(model, pairs, batch_size=batch_size))
    assert sorted(found) == list(range(len(pairs)))
    for i, (prompt, reply) in enumerate(pairs):
        assert found[i] == pytest.approx(naive(model, prompt, reply), abs=1e-5)


def test_an_empty_reply_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        list(reply_logprobs(tiny_model(ARCHITECTURES[0]).eval(), [((1, 2), ())]))
