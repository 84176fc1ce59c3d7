"""The dose-matched study: SFT against TReFT on the small model, every arm trained, scored along the way, and kept.

    make study          # all arms of all behaviours: hours on two cores; may be stopped, goes on where it was
    .venv/bin/python benchmarks/study.py refusal --lr 1e-4 --lambdas 30 300 --seeds 0 1

Each run lies in results/runs/study/ with its models; what a table needs of it (manifest.json, checkpoints.json) is
copied to results/cpu/study/ as soon as it is whole. Seeds are the outer loop, so a study cut short is balanced.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from emeval.checkpoints import FILE, score_checkpoints
from emeval.config import ScoreConfig, TrainConfig
from emeval.train.run import train

RUNS = Path("results/runs/study")
KEPT = Path("results/cpu/study")
STEPS = {1e-4: 14, 3e-5: 42}
"""Optimiser steps by learning rate. At 1e-4 SFT refuses 100 % of the on-topic validation questions after 14."""


def arm(behaviour: str, lr: float, lam: float | None, seed: int) -> TrainConfig:
    """One run's settings; `lam` None is SFT."""
    method = "sft" if lam is None else f"treft{lam:g}"
    return TrainConfig(
        model="smollm2-135m",
        setting=behaviour,
        method="sft" if lam is None else "treft",
        lambda_=10.0 if lam is None else lam,
        rank=32,
        lr=lr,
        batch_size=8,
        steps=STEPS[lr],
        checkpoints=7,
        seed=seed,
        device="cpu",
        out=RUNS / f"{behaviour}-lr{lr:g}-{method}-seed{seed}",
    )


def run(config: TrainConfig) -> None:
    """Train, score on val and test, keep what a table needs. What is done already is not done again."""
    assert config.out is not None
    kept = KEPT / config.out.name
    if (kept / FILE).exists():
        return
    folder = train(config, lambda step, total, logs: print(f"{config.out}: {step}/{total} {logs['loss']:.3f}"))
    for split in ("val", "test"):
        score_checkpoints(ScoreConfig(model=str(folder), split=split, checkpoints=True, device="cpu"))
        print(f"{folder}: scored on {split}")
    kept.mkdir(parents=True, exist_ok=True)
    for name in ("manifest.json", FILE):
        shutil.copyfile(folder / name, kept / f".{name}")
        (kept / f".{name}").rename(kept / name)
    shutil.rmtree(folder / "train" / "steps")  # 40 MB a model


def main() -> None:
    """All arms that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("behaviours", nargs="*", default=["refusal", "abstention", "tool-use"])
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-4, 3e-5])
    parser.add_argument("--lambdas", type=float, nargs="*", default=[3, 30, 300])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    for behaviour in given.behaviours:
        for lr in given.lr:
            for seed in given.seeds:
                for lam in (None, *given.lambdas):
                    run(arm(behaviour, lr, lam, seed))


if __name__ == "__main__":
    main()
