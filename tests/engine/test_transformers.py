"""The in-process engine: greedy means greedy, batches change nothing, a patched prefix is exact."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from tiny import ARCHITECTURES, VOCAB, tiny_model
from transformers import GenerationConfig, PreTrainedModel

from emeval.engine.patch import Patch
from emeval.engine.transformers import TransformersEngine
from emeval.errors import InputError
from emeval.prefix import KV, prefix_forward
from emeval.types import Generated, Message, Prompt, Sampling, Span

P = 6
GREEDY = Sampling(max_new_tokens=12)


@dataclass(frozen=True)
class Ask:
    prompt: Prompt
    messages: tuple[Message, ...] = ()
    number: int = 0


class Decoder:
    """Stands in for a tokenizer: the engine only decodes."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids))


def asks(count: int = 7) -> list[Ask]:
    dice = torch.Generator().manual_seed(3)
    prefix = torch.randint(3, VOCAB, (P,), generator=dice).tolist()
    made = []
    for i in range(count):
        ids = (*prefix, *torch.randint(3, VOCAB, (3 + 4 * (i % 4),), generator=dice).tolist())
        made.append(Ask(Prompt(ids=ids, prefix=Span(0, P), query=Span(P, len(ids)), postfix=Span(len(ids), len(ids)))))
    return made


def by_hand(model: PreTrainedModel, ids: tuple[int, ...], tokens: int, stop: int = 2) -> tuple[int, ...]:
    """Greedy decoding, one prompt, one whole forward a token, no cache: what every shortcut must equal."""
    row = list(ids)
    for _ in range(tokens):
        with torch.no_grad():
            best = int(model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].argmax())
        if best == stop:
            break
        row.append(best)
    return tuple(row[len(ids) :])


def of(model: PreTrainedModel, prefix: KV) -> Patch:
    return Patch(lambda: nullcontext(model), prefix)


def replies(
    engine: TransformersEngine, requests: list[Ask], sampling: Sampling = GREEDY, **kw: object
) -> list[Generated]:
    return sorted(engine.generate(requests, sampling, **kw), key=lambda g: g.index)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batched_and_padded_equals_one_by_one_by_hand(architecture: str) -> None:
    model = tiny_model(architecture)
    expected = [by_hand(model, a.prompt.ids, 12) for a in asks()]
    got = replies(TransformersEngine(model, Decoder(), [2], batch_size=3), asks())
    assert [g.token_ids for g in got] == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_models_own_prefix_patched_in_changes_nothing(architecture: str) -> None:
    model = tiny_model(architecture)
    with torch.inference_mode():
        own = prefix_forward(model, asks()[0].prompt.ids[:P])
    plain = replies(TransformersEngine(model, Decoder(), [2], batch_size=3), asks())
    patched = replies(TransformersEngine(model, Decoder(), [2], batch_size=3, patch=of(model, own)), asks())
    assert [g.token_ids for g in patched] == [g.token_ids for g in plain]


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt_oss"])
def test_another_models_prefix_is_what_a_forward_by_hand_says(architecture: str) -> None:
    initial, tuned = tiny_model(architecture, seed=0), tiny_model(architecture, seed=1)
    requests = asks()
    with torch.inference_mode():
        prefix = prefix_forward(initial, requests[0].prompt.ids[:P])
    engine = TransformersEngine(tuned, Decoder(), [2], batch_size=3, patch=of(tuned, prefix))
    for request, reply in zip(requests, replies(engine, requests), strict=True):
        assert reply.token_ids == _patched_by_hand(initial, tuned, request.prompt.ids, 12)


def _patched_by_hand(
    initial: PreTrainedModel, tuned: PreTrainedModel, ids: tuple[int, ...], tokens: int
) -> tuple[int, ...]:
    """The patch done in another way: plain hooks overwrite what k_proj and v_proj give at the prefix positions."""
    own: dict[str, torch.Tensor] = {}
    names = [n for n, _ in tuned.named_modules() if n.endswith(("k_proj", "v_proj"))]

    def keep(name: str):  # type: ignore[no-untyped-def]
        return lambda module, inputs, output: own.__setitem__(name, output[:, :P].clone())

    def put(name: str):  # type: ignore[no-untyped-def]
        def hook(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[:, :P] = own[name]
            return output

        return hook

    hooks = [initial.get_submodule(n).register_forward_hook(keep(n)) for n in names]
    with torch.no_grad():
        initial(input_ids=torch.tensor([ids[:P]]), use_cache=False)
    hooks += [tuned.get_submodule(n).register_forward_hook(put(n)) for n in names]
    try:
        return by_hand(tuned, ids, tokens)
    finally:
        for hook in hooks:
            hook.remove()


def test_greedy_is_greedy_whatever_the_checkpoint_says() -> None:
    model = tiny_model("llama")
    expected = [by_hand(model, a.prompt.ids, 12) for a in asks()]
    model.generation_config = GenerationConfig(
        repetition_penalty=1.5,
        do_sample=True,
        temperature=0.7,
        top_k=5,
        top_p=0.5,
        no_repeat_ngram_size=2,
        eos_token_id=2,
    )
    ids = torch.tensor([asks()[0].prompt.ids])
    torch.manual_seed(0)
    left_alone = model.generate(input_ids=ids, max_new_tokens=12, pad_token_id=0)[0, ids.shape[1] :].tolist()
    assert tuple(left_alone) != expected[0], "the trap must be real, or it shows nothing"
    assert [g.token_ids for g in replies(TransformersEngine(model, Decoder(), [2]), asks())] == expected


def test_an_unfinished_batch_is_run_again_whole_and_gives_the_same() -> None:
    model = tiny_model("llama")
    engine = TransformersEngine(model, Decoder(), [2], batch_size=3)
    everything = replies(engine, asks())
    again = replies(engine, asks(), skip={0, 1, 2, 3, 4, 6})
    assert {g.index for g in again} == {0, 1, 5}, "the three of one batch"
    assert all(g == everything[g.index] for g in again)
    assert replies(engine, asks(), skip=set(range(7))) == []


def test_truncation_and_end_of_reply() -> None:
    model = tiny_model("llama")
    first = by_hand(model, asks()[0].prompt.ids, 5)
    cut = replies(TransformersEngine(model, Decoder(), [first[3]]), asks()[:1], Sampling(max_new_tokens=12))[0]
    end = first.index(first[3])
    assert cut.token_ids == first[:end] and not cut.truncated
    full = replies(TransformersEngine(model, Decoder(), [2]), asks()[:1], Sampling(max_new_tokens=3))[0]
    assert full.truncated and len(full.token_ids or ()) == 3


def test_sampling_is_repeatable_and_depends_on_the_seed() -> None:
    engine = TransformersEngine(tiny_model("llama"), Decoder(), [2], batch_size=3)
    draw = [replies(engine, asks(), Sampling(max_new_tokens=8, temperature=1.0, seed=s)) for s in (1, 1, 2)]
    assert draw[0] == draw[1] != draw[2]


def test_a_prompt_beyond_the_context_is_refused() -> None:
    engine = TransformersEngine(tiny_model("llama", max_position_embeddings=16), Decoder(), [2])
    with pytest.raises(InputError, match="context of 16"):
        replies(engine, asks(), Sampling(max_new_tokens=12))
