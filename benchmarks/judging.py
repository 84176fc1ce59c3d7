"""How fast judge calls go: emeval against the bare OpenAI client, a sequential loop, and inspect_ai where installed.

    .venv/bin/python -m benchmarks.judging --calls 10000 --out results/cpu/judging.md

A server in a process of its own answers every chat call after 50 ms, with log-probabilities. The arms take turns in one
run, 64 calls at once; emeval's is `LlmJudge.judge_all`, prompts rendered, answers parsed and every judgement written.
The sequential loop and inspect_ai make fewer calls, since their rate does not depend on the number.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LATENCY, AT_ONCE = 0.05, 64
ANSWER = {
    "id": "c", "object": "chat.completion", "created": 1, "model": "judge",
    "choices": [{
        "index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "80"},
        "logprobs": {"content": [{"token": "80", "logprob": -0.1, "bytes": None, "top_logprobs": [
            {"token": str(n), "logprob": -0.1 - 3 * (n - 80), "bytes": None} for n in range(80, 100)]}]},
    }],
    "usage": {"prompt_tokens": 300, "completion_tokens": 1, "total_tokens": 301},
}  # fmt: skip


def serve(port: Any) -> None:
    """A chat API that answers after the latency; tells its port."""
    from aiohttp import web

    body = json.dumps(ANSWER).encode()

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(LATENCY)
        return web.Response(body=body, content_type="application/json")

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "judge", "object": "model"}]})

    async def main() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        app.router.add_get("/v1/models", models)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port.value = runner.addresses[0][1]
        await asyncio.Event().wait()

    asyncio.run(main())


def items(count: int) -> list[Any]:
    """Replies of everyday length."""
    from emeval.judge.prompt import Turn
    from emeval.judge.run import Item
    from emeval.types import Completion

    text = "You could start by writing down what matters to you, and then talk it over with somebody you trust. " * 3
    made = []
    for n in range(count):
        completion = Completion(key=f"k{n}", probe="general", split="test", question_id=f"q{n}", question="What now?",
                                text=f"{n} {text}", prompt_tokens=30, truncated=False)  # fmt: skip
        made.append(Item(completion, (Turn(question="What now?", answer=completion.text),)))
    return made


def emeval_arm(url: str, asked: list[Any]) -> int:
    """All of it: render, ask, parse, write."""
    from emeval.data.root import data_root
    from emeval.judge.llm import JudgeServer, LlmJudge
    from emeval.judge.prompt import load_judge_prompt
    from emeval.store import Jsonl
    from emeval.types import Judgement

    judge = LlmJudge(JudgeServer("judge", url, concurrency=AT_ONCE), load_judge_prompt(data_root(), "alignment"))
    with tempfile.TemporaryDirectory() as folder:
        file = Jsonl(Path(folder) / "judgements.jsonl", Judgement)
        found = judge.judge_all(asked, file)
        file.close()
    return sum(j.outcome == "scored" for j in found)


def bare_arm(aiohttp: bool) -> Callable[[str, list[Any]], int]:
    """Workers around the client; the same requests, and nothing done with the answers."""

    def run(url: str, asked: list[Any]) -> int:
        return asyncio.run(_bare(url, asked, aiohttp))

    return run


async def _bare(url: str, asked: list[Any], aiohttp: bool) -> int:
    import openai

    http = (openai.DefaultAioHttpClient if aiohttp else openai.DefaultAsyncHttpxClient)()
    messages, fields = _requests(asked)
    jobs, done = iter(messages), 0
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", http_client=http) as client:

        async def work() -> None:
            nonlocal done
            for said in jobs:
                await client.chat.completions.create(model="judge", messages=said, **fields)
                done += 1

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return done


def sequential_arm(url: str, asked: list[Any]) -> int:
    """One call after the other, as the paper's scripts do."""
    import openai

    messages, fields = _requests(asked)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        for said in messages:
            client.chat.completions.create(model="judge", messages=said, **fields)
    return len(messages)


def _requests(asked: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    from emeval.data.root import data_root
    from emeval.judge.dialect import Dialect
    from emeval.judge.prompt import load_judge_prompt

    prompt = load_judge_prompt(data_root(), "alignment")
    return [prompt.render(item.turns) for item in asked], Dialect(logprobs=True).fields(prompt.max_tokens)


def inspect_arm(url: str, asked: list[Any]) -> int:
    """inspect_ai: its evaluation of as many samples, the model being the judge."""
    import os

    from inspect_ai import Task, eval
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.model import get_model

    os.environ["OPENAI_API_KEY"] = "none"
    messages, _ = _requests(asked)
    samples = MemoryDataset([Sample(input=said[-1]["content"]) for said in messages])
    model = get_model("openai/judge", base_url=f"{url}/v1", api_key="none", responses_api=False)
    with tempfile.TemporaryDirectory() as folder:
        (log,) = eval(Task(dataset=samples), model=model, log_dir=folder, display="none",
                      max_connections=AT_ONCE, max_samples=AT_ONCE)  # fmt: skip
        return len(log.samples or [])


def main() -> None:
    """Run the arms in turns and print Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=10_000, help="calls a round of the two main arms")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    port = multiprocessing.Value("i", 0)
    server = multiprocessing.Process(target=serve, args=(port,), daemon=True)
    server.start()
    while not port.value:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{port.value}"
    arms: dict[str, tuple[Callable[[str, list[Any]], int], int]] = {
        "bare client, aiohttp": (bare_arm(True), given.calls),
        "emeval": (emeval_arm, given.calls),
        "bare client, default transport": (bare_arm(False), given.calls // 4),
        "sequential loop": (sequential_arm, min(100, given.calls)),
    }
    try:
        import inspect_ai

        arms[f"inspect_ai {inspect_ai.__version__}"] = (inspect_arm, min(500, given.calls))
    except ImportError:
        sys.stderr.write("inspect_ai is not installed: left out\n")
    rates: dict[str, list[float]] = {name: [] for name in arms}
    memory = []
    for _ in range(given.rounds):
        for name, (run, calls) in arms.items():
            asked = items(calls)
            started = time.perf_counter()
            done = run(url, asked)
            rates[name].append(done / (time.perf_counter() - started))
            if name == "emeval":
                memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    server.terminate()
    text = report(rates, {name: calls for name, (_, calls) in arms.items()}, memory)
    sys.stdout.write(text)
    if given.out:
        given.out.write_text(text)


def report(rates: dict[str, list[float]], calls: dict[str, int], memory: list[float]) -> str:
    """Markdown: calls a second, and the ratio to the bare client on its fastest transport, round by round."""
    from emeval.provenance import facts

    base, ideal = rates["bare client, aiohttp"], AT_ONCE / LATENCY
    lines = [
        f"Judge calls, {AT_ONCE} at once, {1000 * LATENCY:.0f} ms each; the ideal is {ideal:.0f} calls a second.",
        "",
        "| arm | calls a round | calls a second | of the bare client | of the ideal |",
        "|---|---|---|---|---|",
    ]
    for name, found in rates.items():
        ratios = [a / b for a, b in zip(found, base, strict=True)]
        lines.append(
            f"| {name} | {calls[name]} | {statistics.median(found):.0f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}-{max(ratios):.2f}) | {statistics.median(found) / ideal:.2f} |"
        )
    made = facts()
    peaks = ", ".join(f"{peak:.0f}" for peak in memory)
    lines += ["", f"Median of {len(base)} rounds, with the range. Peak memory after emeval's rounds, MiB: {peaks}."]
    lines += [f"Made with {json.dumps(made['emeval'])}, {json.dumps(made['machine'])}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
