"""Speed, as ratios measured side by side in one run. Prints Markdown.

    make bench                                       # or, in a few minutes:
    .venv/bin/python benchmarks/run.py --rounds 2 --questions 8 --queries 46 --skip memory regularisers

The arms take turns, so that a busy neighbour slows all of them alike; a ratio is the median over rounds of the two
arms' figures in the same round, with the range. Peak memory is that of a process that runs one arm only.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it
ROWS, PREFIX, REPLY = 8, 24, 12
ARMS = {
    "SFT (plain TRL)": ("trl", {}),
    "TReFT, capture": ("treft", {"shared_prefix": False}),
    "TReFT, shared prefix": ("treft", {}),
    "SFT, shared prefix": ("sft", {}),
    "TReFT, the released way": ("released", {}),
    "SFT, gradient checkpointing": ("trl", {"gradient_checkpointing": True}),
    "TReFT, gradient checkpointing": ("treft", {"gradient_checkpointing": True}),
}
BASE, *CURVE = list(ARMS)[:3]
Times = dict[tuple[str, int], list[float]]
"""Seconds a round, by arm and query length."""


# ---------------------------------------------------------------------------------------------------------------- steps


def make_rows(prefix: Sequence[int], query: int) -> list[dict[str, list[int]]]:
    """Rows of the prefix and `query` tokens, the last of them a reply."""
    ids = [[*prefix, *((7919 * (r + 1) * (t + 1)) % 40000 + 500 for t in range(query))] for r in range(ROWS)]
    labels = [[-100] * (PREFIX + query - REPLY) + row[-REPLY:] for row in ids]
    return [{"input_ids": i, "labels": k} for i, k in zip(ids, labels, strict=True)]


def make_trainer(arm: str, query: int) -> Any:
    """A trainer with SmolLM2 and LoRA rank 32 on all linear layers, and rows of prefix, query and reply."""
    from datasets import Dataset
    from peft import LoraConfig
    from released import ReleasedTrainer
    from trl import SFTConfig, SFTTrainer

    from emeval import models
    from emeval.chat import Renderer
    from emeval.train.methods.shared_prefix import SharedPrefixConfig, SharedPrefixTrainer
    from emeval.train.methods.treft import TReFTConfig, TReFTTrainer

    kind, changes = ARMS[arm]
    source = models.resolve(models.DEMO_MODEL)
    tokenizer = models.load_tokenizer(source)
    prefix = Renderer(tokenizer).prefix_ids()
    assert len(prefix) == PREFIX
    config, trainer = {
        "trl": (SFTConfig, SFTTrainer),
        "sft": (SharedPrefixConfig, SharedPrefixTrainer),
        "treft": (TReFTConfig, TReFTTrainer),
        "released": (SFTConfig, ReleasedTrainer),
    }[kind]
    settings = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": ROWS,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": None,
        "report_to": "none",
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    made = trainer(
        model=models.load_model(source, models.placement("cpu", "float32"), trainable=True),
        args=config(**settings | changes),
        train_dataset=Dataset.from_list(make_rows(prefix, query)),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    return made


def step(trainer: Any, query: int) -> float:
    """Seconds of one forward and backward over the whole batch, its rows `query` tokens behind the prefix."""
    prefix = trainer.train_dataset[0]["input_ids"][:PREFIX]
    batch = trainer.data_collator(make_rows(prefix, query))
    items = (batch["labels"][:, 1:] != -100).sum()
    trainer.model.zero_grad()
    started = time.perf_counter()
    trainer.training_step(trainer.model, batch, items)
    return time.perf_counter() - started


def step_times(query: int, queries: Sequence[int], rounds: int) -> Times:
    """All arms at `query`, the curve's arms at each of `queries`; all of them taking turns."""
    trainers = {arm: make_trainer(arm, query) for arm in ARMS}
    turns = [(arm, query) for arm in ARMS]
    turns += [(arm, other) for other in queries if other != query for arm in (BASE, *CURVE)]
    for arm, length in turns:
        step(trainers[arm], length)  # the first step takes the reference and warms up
    times: Times = {turn: [] for turn in turns}
    for number in range(rounds):
        # Who comes first changes, what is compared stays close together.
        first = number % len(turns)
        for arm, length in turns[first:] + turns[:first]:
            times[arm, length].append(step(trainers[arm], length))
    return times


def peak_memory(arm: str, query: int) -> int:
    """Bytes, in a process of its own; the median of three, since an allocator's holes differ from run to run."""
    command = [sys.executable, __file__, "--memory-of", arm, "--query", str(query)]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3)]
    return int(statistics.median(int(run.stdout.split()[-1]) for run in runs))


def print_own_peak(arm: str, query: int) -> None:
    """Two steps of one arm, then this process's peak memory in the second, in bytes (Linux)."""
    from regularisers import peak_bytes

    trainer = make_trainer(arm, query)
    step(trainer, query)
    print(peak_bytes(lambda: step(trainer, query)))


def start_up(rounds: int = 7) -> list[float]:
    """`emeval --help` over `import typer, rich`, a ratio a round."""
    ratios = []
    for _ in range(rounds):
        timings = []
        for command in (["-c", "import typer, rich"], ["-m", "emeval", "--help"]):
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], capture_output=True, check=True)
            timings.append(time.perf_counter() - started)
        ratios.append(timings[1] / timings[0])
    return ratios


# ------------------------------------------------------------------------------------------------------------- the page


def spread(ratios: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def over(times: list[float], base: list[float]) -> str:
    """The ratios of a round each, median and range."""
    return spread([a / b for a, b in zip(times, base, strict=True)])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def steps_section(options: argparse.Namespace) -> Iterator[str]:
    """The step of every arm, and the curve."""
    query = options.query
    times = step_times(query, options.queries, options.rounds)
    memory = {} if "memory" in options.skip else {arm: peak_memory(arm, query) for arm in ARMS}
    rows = [
        [
            arm,
            over(times[arm, query], times[BASE, query]),
            f"{statistics.median(times[arm, query]):.2f}",
            f"{memory[arm] / memory[BASE]:.2f}" if memory else "not measured",
        ]
        for arm in ARMS
    ]
    yield f"## A training step\n\nLoRA rank 32, {ROWS} rows of {PREFIX} + {query} tokens, {REPLY} of them the reply."
    yield table(["arm", "step time / plain SFT (range)", "seconds, median", "peak memory / plain SFT"], rows)
    yield f"## The step against query length\n\n{BASE} in seconds, the others' step time over it in the same round."
    curve = [
        [str(n), f"{statistics.median(times[BASE, n]):.2f}", *(over(times[arm, n], times[BASE, n]) for arm in CURVE)]
        for n in options.queries
    ]
    yield table(["tokens behind the prefix", BASE, *CURVE], curve)


def scoring_section(options: argparse.Namespace) -> Iterator[str]:
    """emeval against hand-written loops."""
    from scoring import CONCURRENCY, against_transformers, against_vllm

    found = [against(options.rounds, options.questions) for against in (against_transformers, against_vllm)]
    rows = []
    for versus in filter(None, found):
        emeval, bare = versus.speeds()
        besides, asking = versus.overhead()
        rows.append([versus.name, spread(versus.ratios("asking")), spread(versus.ratios("seconds"))])
        rows[-1] += [f"{emeval:.0f} / {bare:.0f}", f"{asking:.1f} + {besides:.1f}", f"{versus.same_replies():.0%}"]
    yield (
        "## Scoring\n\nTokens a second of `emeval score` (refusal, on-topic and off-topic, first "
        f"{options.questions} questions each, greedy) over those of a hand-written loop on the same token ids: "
        "`model.generate` on the same batches, and a gather over `AsyncOpenAI` at the same vLLM server, "
        f"{CONCURRENCY} requests in flight. Loading and server start are in neither. 'All' counts against emeval what "
        "it does besides asking: checking, rendering, hashing weights, judging, writing."
    )
    head = ["engine", "asking, emeval / bare (range)", "all, emeval / bare (range)"]
    yield table([*head, "tokens/s, emeval / bare", "seconds, asking + besides", "same replies"], rows)
    if None in found:
        yield "vLLM: not measured, it is not installed (`make vllm`)."


def sections(options: argparse.Namespace) -> Iterator[str]:
    """The page, part by part, as they are measured."""
    from emeval.provenance import facts

    about = facts()
    commit = f"{(about['emeval']['commit'] or 'unknown')[:8]}{' (changed)' if about['emeval']['dirty'] else ''}"
    versions = ", ".join(f"{name} {about['packages'].get(name, '-')}" for name in ("torch", "transformers", "trl"))
    machine = f"{about['machine']['processor']}, {os.cpu_count()} cores"
    yield (
        f"# Speed\n\nSmolLM2-135M, fp32, {machine}, {options.rounds} rounds; {versions}; commit {commit}; "
        f"load average at the start {os.getloadavg()[0]:.1f}. Arms take turns; a ratio is "
        "the median of the rounds' ratios, with their range. Written by `make bench`."
    )
    if "steps" not in options.skip:
        yield from steps_section(options)
    if "regularisers" not in options.skip:
        from regularisers import section

        yield from section(options.rounds, "cpu")
    if "scoring" not in options.skip:
        yield from scoring_section(options)
    yield f"## Start-up\n\n`emeval --help` over `import typer, rich`: {spread(start_up())}"


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--query", type=int, default=46, help="tokens behind the prefix, reply included")
    parser.add_argument("--queries", type=int, nargs="+", default=[22, 46, 150], help="the same, for the curve")
    parser.add_argument("--questions", type=int, default=32, help="questions of each of the two probes")
    parser.add_argument("--skip", nargs="+", choices=("steps", "memory", "regularisers", "scoring"), default=[])
    parser.add_argument("--out", type=Path, help="also write the page there")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print_own_peak(options.memory_of, options.query)
        return
    page = []
    for section in sections(options):
        page.append(section)
        print(section, end="\n\n", flush=True)
    if options.out:
        from emeval.store import write_atomic

        write_atomic(options.out, "\n\n".join(page) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
