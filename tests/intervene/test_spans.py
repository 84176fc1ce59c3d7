"""Query and postfix patching: identities, and the exchange done another way, by hooks on the projections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from tiny import ARCHITECTURES

from emeval.engine.likelihood import reply_logprobs
from emeval.engine.patch import Patch, SpanPatch
from emeval.engine.transformers import TransformersEngine
from emeval.errors import InputError
from emeval.intervene.kv import patched_prefix
from emeval.intervene.ways import Way
from emeval.models import Pair, Which
from emeval.prefix import KV, PrefixCapture, keys_before_rope, slides
from emeval.types import Prompt, Span
from tests.engine.test_transformers import GREEDY, Ask, Decoder, replies
from tests.intervene.pairs import PAIRS, P, S, lora_pair, prompts
from tests.tiny import tiny_model

OTHER: dict[Which, Which] = {"tuned": "initial", "initial": "tuned"}
REPLY = (11, 12, 13)
QUERIES = (4, 9, 6)
SLIDING = {"mistral", "gpt_oss", "gemma3_text"}


def patch(pair: Pair, region: str, into: Which, source: Which, *, shared: bool = True) -> Patch:
    """As `emeval patch` makes it; or with every prompt run whole, as where windows slide."""
    (shortest,) = prompts(0)
    own = patched_prefix(pair, shortest[:P], into) if shared and not slides(pair.both) else None
    return Patch(partial(pair.acting, into), own, SpanPatch(pair, source, region, shortest[:P], shortest[P:]))


def asks(queries: tuple[int, ...] = QUERIES) -> list[Ask]:
    made = []
    for ids in prompts(*queries):
        end = len(ids) - S
        made.append(Ask(Prompt(ids=ids, prefix=Span(0, P), query=Span(P, end), postfix=Span(end, len(ids)))))
    return made


def logprobs(pair: Pair, patched: Patch | None, queries: tuple[int, ...] = QUERIES) -> list[tuple[float, ...]]:
    pairs = [(ids, REPLY) for ids in prompts(*queries)]
    return [values for _, values in sorted(reply_logprobs(pair.both, pairs, batch_size=2, patch=patched))]


@contextmanager
def hooked(model: Any, places: slice, keys: list[torch.Tensor], values: list[torch.Tensor]) -> Iterator[None]:
    """Plain hooks that overwrite what the blocks' projections give at some places: keys before RoPE, and values."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    hooks = []

    def put(new: torch.Tensor) -> Callable[..., torch.Tensor]:
        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            if output.dim() == 4 and output.shape[1] == new.shape[1]:  # Gemma norms what is split into heads already
                output[:, :, places] = new
            else:
                output[:, places] = new.transpose(1, 2).reshape(1, -1, *output.shape[2:])
            return output

        return hook

    for layer, block in enumerate(inner.model.layers):
        attention = block.self_attn
        if hasattr(attention, "qkv_proj"):  # Phi-3: queries, keys and values in one
            hooks.append(attention.qkv_proj.register_forward_hook(_fused(places, keys[layer], values[layer])))
            continue
        key_side = attention.k_norm if hasattr(attention, "k_norm") else attention.k_proj
        hooks.append(key_side.register_forward_hook(put(keys[layer])))
        hooks.append(attention.v_proj.register_forward_hook(put(values[layer])))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _fused(places: slice, keys: torch.Tensor, values: torch.Tensor) -> Callable[..., torch.Tensor]:
    def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        new = torch.cat([part.transpose(1, 2).flatten(2) for part in (keys, values)], dim=-1)
        output[:, places, -new.shape[-1] :] = new
        return output

    return hook


def observed(model: Any, ids: tuple[int, ...], places: slice) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Keys before RoPE and values of one prompt at some places."""
    capture = PrefixCapture(None)
    with torch.no_grad(), keys_before_rope(model) as keys:
        model(input_ids=torch.tensor([ids]), past_key_values=capture, use_cache=False)
    return [k[:, :, places] for k in keys], [v[:, :, places] for v in capture.captured().values]


def by_hooks(pair: Pair, region: str, into: Which, ids: tuple[int, ...]) -> tuple[float, ...]:
    places = slice(P, min(2 * P, len(ids) - S)) if region == "query" else slice(len(ids) - S, len(ids))
    with pair.acting(OTHER[into]) as source:
        if region == "query":
            keys, values = observed(source, ids, places)
        else:
            (empty,) = prompts(0)
            keys, values = observed(source, empty, slice(P, P + S))
    with pair.acting(into) as model, torch.no_grad(), hooked(model, places, keys, values):
        logits = model(input_ids=torch.tensor([[*ids, *REPLY]]), use_cache=False).logits[0].log_softmax(-1)
    return tuple(logits[len(ids) + n - 1, token].item() for n, token in enumerate(REPLY))


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("into", ["tuned", "initial"])
@pytest.mark.parametrize("region", ["query", "postfix"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_exchange_is_what_plain_hooks_do(architecture: str, region: str, into: Which, kind: str) -> None:
    pair = PAIRS[kind](architecture)
    found = logprobs(pair, patch(pair, region, into, OTHER[into]))
    unpatched = logprobs(pair, Patch(partial(pair.acting, into)))
    for values, plain, ids in zip(found, unpatched, prompts(*QUERIES), strict=True):
        assert values == pytest.approx(by_hooks(pair, region, into, ids), abs=2e-4)
        assert max(abs(a - b) for a, b in zip(values, plain, strict=True)) > 1e-2, "it must do something"


@pytest.mark.parametrize("into", ["tuned", "initial"])
@pytest.mark.parametrize("region", ["query", "postfix"])
def test_prompts_run_whole_or_behind_their_prefix_read_the_same(region: str, into: Which) -> None:
    pair = lora_pair("llama")
    found = [
        logprobs(pair, patch(pair, region, into, OTHER[into], shared=shared), (4, 0, 9, 2 * P))
        for shared in (True, False)
    ]
    for shared, whole in zip(*found, strict=True):
        assert shared == pytest.approx(whole, abs=1e-5)


def test_the_command_puts_the_models_own_prefix_in_front_where_no_window_slides() -> None:
    (shortest,) = prompts(0)
    behind = {}
    for architecture in ARCHITECTURES:
        way = Way("", None, "", "layer", "tuned", "query")
        behind[architecture] = way.patch(lora_pair(architecture), shortest[:P], shortest[P:]).prefix is not None
    assert {name for name, is_behind in behind.items() if not is_behind} == SLIDING


@pytest.mark.parametrize("queries", [(4, 9, 6), (0, 0), (2 * P,)])
def test_of_the_other_model_the_querys_tokens_alone_are_asked(queries: tuple[int, ...]) -> None:
    pair = lora_pair("llama")
    patched = patch(pair, "query", "tuned", "initial")
    list(reply_logprobs(pair.both, [(ids, REPLY) for ids in prompts(*queries)], patch=patched))  # its prefix, once
    asked = []
    hook = pair.both.get_base_model().model.register_forward_pre_hook(
        lambda module, args, given: asked.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    found = dict(reply_logprobs(pair.both, [(ids, REPLY) for ids in prompts(*queries)], patch=patched))
    hook.remove()
    other, own = asked
    assert other == max(1, min(P, max(queries))) and own == max(queries) + S + len(REPLY) - 1
    for n, ids in enumerate(prompts(*queries)):
        if queries[n]:
            assert found[n] == pytest.approx(by_hooks(pair, "query", "tuned", ids), abs=2e-4)


@pytest.mark.parametrize("into", ["tuned", "initial"])
def test_replies_behind_the_prefix_are_those_of_prompts_run_whole(into: Which) -> None:
    pair = lora_pair("llama")
    whole, behind = (
        replies(
            TransformersEngine(
                pair.both, Decoder(), [2], batch_size=3, patch=patch(pair, "query", into, OTHER[into], shared=shared)
            ),
            asks((4, 0, 9)),
        )
        for shared in (False, True)
    )
    assert [g.token_ids for g in whole] == [g.token_ids for g in behind]


@pytest.mark.parametrize("which", ["tuned", "initial"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_models_own_query_changes_nothing_nor_its_own_postfix_behind_an_empty_query(
    architecture: str, which: Which
) -> None:
    pair = lora_pair(architecture)
    plain = Patch(partial(pair.acting, which))
    for region, queries in (("query", QUERIES), ("postfix", (0, 0))):
        found = logprobs(pair, patch(pair, region, which, which), queries)
        for values, own in zip(found, logprobs(pair, plain, queries), strict=True):
            assert values == pytest.approx(own, abs=5e-5)


@pytest.mark.parametrize("region", ["query", "postfix"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batched_and_padded_replies_equal_one_by_one_and_fit_the_likelihoods(architecture: str, region: str) -> None:
    pair = lora_pair(architecture)
    patched = patch(pair, region, "tuned", "initial")
    together = replies(TransformersEngine(pair.both, Decoder(), [2], batch_size=3, patch=patched), asks())
    apart = replies(TransformersEngine(pair.both, Decoder(), [2], batch_size=1, patch=patched), asks())
    assert [g.token_ids for g in together] == [g.token_ids for g in apart]
    for ask, reply in zip(asks(), together, strict=True):
        first = reply.token_ids[0] if reply.token_ids else 2
        scores = {
            token: next(reply_logprobs(pair.both, [(ask.prompt.ids, (token,))], patch=patched))[1][0]
            for token in (first, 5, 50, 100)
        }
        assert max(scores, key=lambda token: scores[token]) == first, "generated and read under the same patch"


def test_only_the_first_forward_is_patched() -> None:
    pair = lora_pair("llama")
    patched = patch(pair, "query", "tuned", "initial")
    engine = TransformersEngine(pair.both, Decoder(), [2], patch=patched)
    (ask, *_) = asks()
    (reply,) = replies(engine, [ask], GREEDY.model_copy(update={"max_new_tokens": 30}))
    assert reply.token_ids and len(reply.token_ids) > 5
    # Read at once, all of the reply's tokens lie behind the patched places, and none of them is patched itself.
    ((_, read),) = reply_logprobs(pair.both, [(ask.prompt.ids, reply.token_ids)], patch=patched)
    for n, token in enumerate(reply.token_ids):
        likely = {t: _next(pair, patched, ask.prompt.ids, reply.token_ids[:n], t) for t in (token, 7, 50)}
        assert likely[token] == pytest.approx(read[n], abs=1e-4) and max(likely, key=lambda t: likely[t]) == token


def test_prompts_of_another_prefix_are_answered_as_they_are() -> None:
    pair = lora_pair("llama")
    covered = prompts(4)[0]
    foreign = (99, *covered[1:])
    short = (99, 98)
    for made in (patch(pair, "query", "tuned", "initial"), Patch(partial(pair.acting, "tuned"), own_prefix(pair))):
        patched = Patch(made.acting, made.prefix, made.span, ids=covered[:P])
        found = dict(reply_logprobs(pair.both, [(covered, REPLY), (foreign, REPLY), (short, REPLY)], patch=patched))
        plain = dict(reply_logprobs(pair.both, [(covered, REPLY), (foreign, REPLY), (short, REPLY)]))
        assert found[1] == pytest.approx(plain[1], abs=1e-5) and found[2] == pytest.approx(plain[2], abs=1e-5)
        assert found[0] != pytest.approx(plain[0], abs=1e-3)
        requests = [Ask(Prompt(ids=ids, prefix=Span(0, 0), query=Span(0, len(ids)), postfix=Span(len(ids), len(ids))))
                    for ids in (covered, foreign, short)]  # fmt: skip
        engine = TransformersEngine(pair.both, Decoder(), [2], batch_size=3, patch=patched)
        plain_engine = TransformersEngine(pair.both, Decoder(), [2], batch_size=3)
        assert [g.token_ids for g in replies(engine, requests)][1:] == [
            g.token_ids for g in replies(plain_engine, requests)
        ][1:]


def own_prefix(pair: Pair) -> KV:
    return patched_prefix(pair, prompts(0)[0][:P], "initial")


def _next(pair: Pair, patched: Patch, prompt: tuple[int, ...], said: tuple[int, ...], token: int) -> float:
    """The log-probability of a token behind a prompt and the start of its reply."""
    ((_, found),) = reply_logprobs(pair.both, [(prompt, (*said, token))], patch=patched)
    return found[-1]


def test_a_prompt_with_another_postfix_is_refused() -> None:
    pair = lora_pair("llama")
    patched = patch(pair, "postfix", "tuned", "initial")
    other = (*prompts(4)[0][:-1], 99)
    with pytest.raises(InputError, match="does not end with the postfix"):
        list(reply_logprobs(pair.both, [(other, REPLY)], patch=patched))


def test_who_answers_is_who_was_asked() -> None:
    pair = PAIRS["full"]("llama")
    for which, model in (("tuned", pair.both), ("initial", tiny_model("llama", seed=0))):
        plain = [(ids, REPLY) for ids in prompts(*QUERIES)]
        own = [v for _, v in sorted(reply_logprobs(model, plain, batch_size=2))]
        acting = Patch(partial(pair.acting, which))  # type: ignore[arg-type]
        for values, expected in zip(logprobs(pair, acting), own, strict=True):
            assert values == pytest.approx(expected, abs=1e-5)
