"""Speed, as ratios measured side by side in one run. Prints one Markdown table.

    make bench                                       # or:
    .venv/bin/python benchmarks/run.py --rounds 5 --query 46

The arms take turns, so that a busy neighbour slows all of them alike; a ratio is the median over rounds of the arm's
time over plain SFT's in the same round. Peak memory is that of a process that runs one arm only.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
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
BASE = next(iter(ARMS))


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
    prefix = list(Renderer(tokenizer).prefix_ids())
    assert len(prefix) == PREFIX
    ids = [prefix + [(7919 * (r + 1) * (t + 1)) % 40000 + 500 for t in range(query)] for r in range(ROWS)]
    labels = [[-100] * (PREFIX + query - REPLY) + row[-REPLY:] for row in ids]
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
        train_dataset=Dataset.from_dict({"input_ids": ids, "labels": labels}),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    made.current_gradient_accumulation_steps = 1
    return made


def step(trainer: Any) -> float:
    """Seconds of one forward and backward over the whole batch."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(ROWS)])
    items = (batch["labels"][:, 1:] != -100).sum()
    trainer.model.zero_grad()
    started = time.perf_counter()
    trainer.training_step(trainer.model, batch, items)
    return time.perf_counter() - started


def step_times(query: int, rounds: int) -> dict[str, list[float]]:
    """Seconds per arm and round, the arms taking turns."""
    trainers = {arm: make_trainer(arm, query) for arm in ARMS}
    for trainer in trainers.values():
        trainer.model.train()
        step(trainer)  # the first step takes the reference and warms up
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for number in range(rounds):
        order = list(trainers)[number % len(trainers) :] + list(trainers)[: number % len(trainers)]
        for arm in order:
            times[arm].append(step(trainers[arm]))
    return times


def peak_memory(arm: str, query: int) -> int:
    """Bytes, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", arm, "--query", str(query)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def start_up(rounds: int = 7) -> float:
    """`emeval --help` over `import typer, rich`: the median of the ratios."""
    ratios = []
    for _ in range(rounds):
        timings = []
        for command in (["-c", "import typer, rich"], ["-m", "emeval", "--help"]):
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], capture_output=True, check=True)
            timings.append(time.perf_counter() - started)
        ratios.append(timings[1] / timings[0])
    return statistics.median(ratios)


def ratio(times: list[float], base: list[float]) -> str:
    """Median of the per-round ratios with their range."""
    found = sorted(a / b for a, b in zip(times, base, strict=True))
    return f"{statistics.median(found):.2f} ({found[0]:.2f}-{found[-1]:.2f})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--query", type=int, default=46, help="tokens behind the prefix, reply included")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        from emeval.provenance import peak_memory_bytes

        trainer = make_trainer(options.memory_of, options.query)
        trainer.model.train()
        step(trainer)
        step(trainer)
        print(peak_memory_bytes())
        return
    times = step_times(options.query, options.rounds)
    memory = {arm: peak_memory(arm, options.query) for arm in ARMS}
    where = f"fp32, {os.cpu_count()} cores, {options.rounds} rounds; commit {_commit()}"
    print(f"SmolLM2-135M, LoRA rank 32, {ROWS} rows of {PREFIX} + {options.query} tokens, {where}\n")
    print("| arm | step time / plain SFT (range) | seconds, median | peak memory / plain SFT |")
    print("|---|---|---|---|")
    for arm in ARMS:
        print(f"| {arm} | {ratio(times[arm], times[BASE])} | {statistics.median(times[arm]):.2f} "
              f"| {memory[arm] / memory[BASE]:.2f} |")  # fmt: skip
    print(f"\n`emeval --help` over `import typer, rich`: {start_up():.2f}")


def _commit() -> str:
    from emeval.provenance import facts

    about = facts()["emeval"]
    return f"{(about['commit'] or 'unknown')[:8]}{' (changed)' if about['dirty'] else ''}"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
