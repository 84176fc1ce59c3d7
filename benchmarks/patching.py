"""What a patch costs: patched against unpatched tokens per second, and a sweep over layers against as many scorings.

    .venv/bin/python -m benchmarks.patching RUN [--device cuda] [--vllm PYTHON] [--rounds 5] [--window 25]

RUN is any finished LoRA run. Arms take turns within a round, so that a busy machine slows all of them alike; ratios are
medians over rounds with their range. Prints Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from emeval import models
from emeval.chat import Renderer
from emeval.config import PatchConfig, ScoreConfig
from emeval.data.root import data_root
from emeval.data.settings import load_setting
from emeval.engine.patched import PatchedPrefix
from emeval.engine.transformers import TransformersEngine
from emeval.engine.vllm import VllmEngine
from emeval.intervene.patch import Both, patch
from emeval.intervene.ways import ways
from emeval.pipeline import score
from emeval.probe.kinds import find_questions
from emeval.probe.run import Ask, plan_asks
from emeval.probe.spec import load_probe
from emeval.types import Sampling

NEW_TOKENS = 48
QUESTIONS = 16


def asks(renderer: Renderer, setting: str) -> list[Ask]:
    """The first off-topic questions."""
    root = data_root(None)
    found = find_questions(load_probe(root, "off-topic"), root, load_setting(root, setting), "test")[:QUESTIONS]
    return plan_asks(found, renderer, "bench", lambda _: (Sampling(max_new_tokens=NEW_TOKENS), 1))


def rate(engine: Any, prompts: list[Ask]) -> float:
    """Generated tokens per second."""
    began = time.perf_counter()
    replies = list(engine.generate(prompts, Sampling(max_new_tokens=NEW_TOKENS)))
    return sum(len(r.token_ids or ()) for r in replies) / (time.perf_counter() - began)


def compared(arms: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Every arm once a round, in turn."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, measure in arms.items():
            found[name].append(measure())
    return found


def told(what: str, values: list[float], base: list[float]) -> None:
    """A ratio's line."""
    ratios = [a / b for a, b in zip(values, base, strict=True)]
    print(f"| {what} | {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) |", flush=True)


def main() -> None:
    """All comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--vllm", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--window", type=int, default=25, help="layers in a window of the sweep; 0 leaves it out")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given = parser.parse_args()
    config = PatchConfig(model=str(given.run), device=given.device, dtype="float32", region="prefix,query,postfix")
    both = Both(config)
    tokenizer = models.load_tokenizer(both.source)
    renderer = Renderer(tokenizer, both.source.system)
    prompts = asks(renderer, both.source.setting or "refusal")
    where = models.placement(given.device, "float32")
    stop = models.eos_ids(tokenizer, both.source, renderer.postfix_ids()[:1])
    plain = TransformersEngine(both.load(where).both, tokenizer, stop)
    found = ways(config, models.layer_count(both.source), len(renderer.prefix_ids()))
    engines = {way.kind: TransformersEngine(both.load(where).both, tokenizer, stop,
               patch=both.patched(way, where, renderer)[1]) for way in found}  # fmt: skip
    print("| patched over unpatched, tokens per second | median (range) |\n|---|---|")
    arms: dict[str, Callable[[], float]] = {"plain": lambda: rate(plain, prompts)}
    arms |= {kind: partial(rate, engine, prompts) for kind, engine in engines.items()}
    rates = compared(arms, given.rounds)
    for way in found:
        told(f"transformers, {way.label}", rates[way.kind], rates["plain"])
    if given.vllm:
        _vllm(given, both, renderer, prompts)
    if given.window:
        _sweep(given, models.layer_count(both.source) - given.window + 1)


def _vllm(given: argparse.Namespace, both: Both, renderer: Renderer, prompts: list[Ask]) -> None:
    prefix = PatchedPrefix(renderer.prefix_ids(), both.initial.base)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        options: dict[str, Any] = {"adapter": both.source.adapter, "python": given.vllm, "dtype": "float32"}
        with (
            VllmEngine(both.source.base, log_dir=one, **options) as plain,
            VllmEngine(both.source.base, log_dir=two, prefix=prefix, **options) as patched,
        ):
            rates = compared(
                {"plain": lambda: rate(plain, prompts), "patched": lambda: rate(patched, prompts)}, given.rounds
            )
    told("vLLM, prefix from the initial model", rates["patched"], rates["plain"])


def _sweep(given: argparse.Namespace, windows: int) -> None:
    """A sweep's variants (its baselines are two) and as many plain scorings, the plain ones before and after it."""
    settings: dict[str, Any] = {"model": str(given.run), "device": given.device, "dtype": "float32", "limit": 8}
    settings |= {"max_new_tokens": 16}
    count = windows + 2
    with tempfile.TemporaryDirectory() as folder:

        def plain(which: range) -> float:
            began = time.perf_counter()
            for i in which:
                score(ScoreConfig(**settings, seed=i, out=Path(folder) / f"plain-{i}"))
            return time.perf_counter() - began

        before = plain(range(count // 2))
        began = time.perf_counter()
        patch(PatchConfig(**settings, layers=f"windows:{given.window}", out=Path(folder) / "sweep"))
        swept = time.perf_counter() - began
        seconds = before + plain(range(count // 2, count))
    print(f"| seconds of a sweep of {count} variants over {count} plain scorings | {swept / seconds:.2f} |")


if __name__ == "__main__":
    main()
