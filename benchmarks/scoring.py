"""What scoring through emeval costs over asking the model yourself: the bench's scoring arms. `run.py` prints them.

Each arm is `emeval.pipeline.score`, all of it, against the loop one would write by hand: the same token ids, the same
model in the same process (or the same server), greedy, taking turns. Left out on both sides: loading the model or
starting the server. The hand-written loops get their prompts rendered; emeval renders, writes and judges on its own
time.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from emeval import models, pipeline
from emeval.config import ScoreConfig
from emeval.engine.choose import Opening, open_engine, vllm_python
from emeval.engine.transformers import TransformersEngine
from emeval.engine.vllm import VllmEngine
from emeval.probe import session
from emeval.probe.plan import ScorePlan, plan_scoring
from emeval.probe.run import Ask
from emeval.store import Jsonl, Run
from emeval.types import Completion

CONCURRENCY = 32
KEY_ENV = "BENCH_VLLM_KEY"


@dataclass(frozen=True)
class Turn:
    """One arm's turn: the same questions asked once."""

    seconds: float
    """All of it; for emeval from the settings to the written scores."""
    asking: float
    """Of it, from the first prompt to the last reply."""
    tokens: int
    """Generated, the one that ended a reply included."""
    replies: list[str]
    """In the order of the questions."""


@dataclass(frozen=True)
class Versus:
    """Turns of emeval and of the hand-written loop, a pair a round."""

    name: str
    emeval: list[Turn]
    bare: list[Turn]

    def ratios(self, part: str) -> list[float]:
        """Tokens a second of emeval over those of the bare loop, a round each; `part` is "asking" or "seconds"."""
        pairs = zip(self.emeval, self.bare, strict=True)
        return [e.tokens / getattr(e, part) / (b.tokens / b.seconds) for e, b in pairs]

    def overhead(self) -> tuple[float, float]:
        """Seconds emeval takes besides asking, and the seconds of asking: medians."""
        besides = statistics.median(t.seconds - t.asking for t in self.emeval)
        return besides, statistics.median(t.asking for t in self.emeval)

    def speeds(self) -> tuple[float, float]:
        """Tokens a second while asking, emeval's and the bare loop's: medians."""
        return tuple(statistics.median(t.tokens / t.asking for t in turns) for turns in (self.emeval, self.bare))  # type: ignore[return-value]

    def same_replies(self) -> float:
        """Share of replies that are the same text on both sides."""
        same = [
            x == y
            for e, b in zip(self.emeval, self.bare, strict=True)
            for x, y in zip(e.replies, b.replies, strict=True)
        ]
        return sum(same) / len(same)


def against_transformers(rounds: int, questions: int) -> Versus:
    """`--engine transformers` and `model.generate` in a loop, on one loaded model."""
    with tempfile.TemporaryDirectory() as folder:
        config = _config(questions, engine="transformers", device="cpu", dtype="float32")
        plan = plan_scoring(config)
        engine = open_engine("transformers", _opening(plan, Path(folder)))
        assert isinstance(engine, TransformersEngine)
        # The engine's own plan: other batches would be another amount of padding, and in the end other texts.
        batches = [[asks[i] for i in batch] for asks in plan.asks.values() for batch in engine._plan(asks)]

        def bare() -> Turn:
            return _bare_transformers(engine, plan, batches)

        with (
            # Loading is not what is compared: the pipeline gets the loaded engine, and does not close it.
            mock.patch.object(session, "open_engine", lambda *_: engine),
            mock.patch.object(engine, "close", lambda: None),
        ):
            return _take_turns("transformers", rounds, _emeval(config, plan, Path(folder)), bare)


def against_vllm(rounds: int, questions: int) -> Versus | None:
    """`--engine endpoint` and a gather over `AsyncOpenAI`, at one vLLM server; None where vLLM is not installed."""
    python = vllm_python()
    if python is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_scoring(_config(questions, engine="transformers"))
        assert plan.source is not None
        stops = _stop_ids(plan, Path(folder))
        with (
            VllmEngine(plan.source.base, python=python, log_dir=folder, stop_token_ids=stops) as server,
            mock.patch.dict(os.environ, {KEY_ENV: server.key.get_secret_value()}),
        ):
            config = _config(
                questions,
                engine="endpoint",
                model_url=server.url,
                model_name=server.model,
                key_env=KEY_ENV,
                concurrency=CONCURRENCY,
            )

            def bare() -> Turn:
                return asyncio.run(_bare_openai(server, plan, stops))

            return _take_turns("vLLM", rounds, _emeval(config, plan, Path(folder)), bare)


# --------------------------------------------------------------------------------------------------------- the two arms


def _emeval(config: ScoreConfig, plan: ScorePlan, folder: Path) -> Callable[[], Turn]:
    """`emeval score` without its command line, each time into a folder of its own."""

    def turn() -> Turn:
        marks: list[float] = []
        out = Path(tempfile.mkdtemp(dir=folder))
        started = time.perf_counter()
        pipeline.score(config.model_copy(update={"out": out}), on_reply=lambda *_: marks.append(time.perf_counter()))
        seconds = time.perf_counter() - started
        found = {(c.probe, c.question_id): c for c in Jsonl(Run(out).completions_path, Completion).read()}
        completions = [found[ask.question.probe, ask.question.id] for ask in plan.all_asks]
        tokens = sum(len(c.token_ids or ()) + (not c.truncated) for c in completions)
        # `on_reply` is called once before the first prompt.
        return Turn(seconds, marks[-1] - marks[0], tokens, [c.text for c in completions])

    return turn


def _bare_transformers(engine: TransformersEngine, plan: ScorePlan, batches: Sequence[Sequence[Ask]]) -> Turn:
    """Left padding, `generate`, `batch_decode`: what a script of one's own would do."""
    import torch

    model, tokenizer, stops = engine.model, engine.tokenizer, engine.stop_ids
    texts: dict[str, str] = {}
    rows: list[list[int]] = []
    started = time.perf_counter()
    for batch in batches:
        width = max(len(ask.prompt.ids) for ask in batch)
        gaps = [width - len(ask.prompt.ids) for ask in batch]
        ids = torch.tensor([[stops[0]] * gap + list(ask.prompt.ids) for gap, ask in zip(gaps, batch, strict=True)])
        mask = torch.tensor([[0] * gap + [1] * (width - gap) for gap in gaps])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=batch[0].sampling.max_new_tokens,
                do_sample=False,
                eos_token_id=stops,
                pad_token_id=stops[0],
            )
        replies = out[:, width:]
        decoded = tokenizer.batch_decode(replies, skip_special_tokens=True)
        texts |= {ask.key: text for ask, text in zip(batch, decoded, strict=True)}
        rows += replies.tolist()
    seconds = time.perf_counter() - started
    tokens = sum(next((n for n, token in enumerate(row, 1) if token in stops), len(row)) for row in rows)
    return Turn(seconds, seconds, tokens, [texts[ask.key] for ask in plan.all_asks])


async def _bare_openai(server: VllmEngine, plan: ScorePlan, stops: Sequence[int]) -> Turn:
    """All requests at once behind a semaphore."""
    import openai

    started = time.perf_counter()
    gate = asyncio.Semaphore(CONCURRENCY)
    # No proxy of the environment's between us and a server on this machine.
    http = openai.DefaultAsyncHttpxClient(trust_env=False)
    key = server.key.get_secret_value()
    async with openai.AsyncOpenAI(base_url=server.url, api_key=key, http_client=http, timeout=600) as client:

        async def one(ask: Ask) -> Any:
            async with gate:
                return await client.completions.create(
                    model=server.model,
                    prompt=list(ask.prompt.ids),
                    max_tokens=ask.sampling.max_new_tokens,
                    temperature=0.0,
                    extra_body={"stop_token_ids": list(stops)},
                )

        answers = await asyncio.gather(*map(one, plan.all_asks))
    texts = [answer.choices[0].text for answer in answers]
    seconds = time.perf_counter() - started
    return Turn(seconds, seconds, sum(answer.usage.completion_tokens for answer in answers), texts)


# --------------------------------------------------------------------------------------------------------------- shared


def _take_turns(name: str, rounds: int, emeval: Callable[[], Turn], bare: Callable[[], Turn]) -> Versus:
    emeval()  # imports, first pages, the server's prefix cache
    turns: dict[Callable[[], Turn], list[Turn]] = {emeval: [], bare: []}
    for number in range(rounds):
        for arm in (emeval, bare) if number % 2 == 0 else (bare, emeval):
            turns[arm].append(arm())
    return Versus(name, turns[emeval], turns[bare])


def _config(questions: int, **engine: Any) -> ScoreConfig:
    return ScoreConfig.model_validate(
        {"model": models.DEMO_MODEL, "setting": "refusal", "limit": questions, "system": None} | engine
    )


def _opening(plan: ScorePlan, folder: Path) -> Opening:
    return Opening(plan.config, plan.source, plan.tokenizer, plan.renderer, folder)


def _stop_ids(plan: ScorePlan, folder: Path) -> tuple[int, ...]:
    from emeval.engine.choose import _stop_ids as stop_ids  # what the pipeline will ask with

    return stop_ids(_opening(plan, folder))
