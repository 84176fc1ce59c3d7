"""The dose-matched study: SFT against TReFT on the small model, every arm trained, scored along the way, and kept.

    make study          # all arms of all behaviours: hours on two cores; may be stopped, goes on where it was
    .venv/bin/python -m benchmarks.study refusal --lr 1e-4 --lambdas 30 300 --seeds 0 1
    .venv/bin/python -m benchmarks.study finance health --lr 1e-4 --lambdas 100     # domains: interleaving too

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


DOMAINS = ("finance", "health", "legal", "auto")
DOMAIN_STEPS = {1e-4: 20, 3e-5: 60}
"""An epoch of a domain's 160 rows, and three."""


def arm(setting: str, lr: float, method: str, seed: int) -> TrainConfig:
    """One run's settings; `method` is sft, interleave or treftLAMBDA."""
    lam = method.removeprefix("treft")
    return TrainConfig(
        model="smollm2-135m",
        setting=setting,
        method="treft" if lam != method else method,  # type: ignore[arg-type]
        lambda_=float(lam) if lam != method else 10.0,
        rank=32,
        lr=lr,
        batch_size=8,
        steps=(DOMAIN_STEPS if setting in DOMAINS else STEPS)[lr],
        checkpoints=4 if setting in DOMAINS else 7,
        seed=seed,
        device="cpu",
        out=RUNS / f"{setting}-lr{lr:g}-{method}-seed{seed}",
    )


def methods(setting: str, lambdas: list[float]) -> list[str]:
    """SFT first; interleaving is the domains' baseline."""
    mixed = ["interleave"] if setting in DOMAINS else []
    return ["sft", *mixed, *(f"treft{lam:g}" for lam in lambdas)]


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
    parser.add_argument("settings", nargs="*", default=["refusal", "abstention", "tool-use"])
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-4, 3e-5])
    parser.add_argument("--lambdas", type=float, nargs="*", default=[3, 30, 300])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    for setting in given.settings:
        for lr in given.lr:
            for seed in given.seeds:
                for method in methods(setting, given.lambdas):
                    run(arm(setting, lr, method, seed))


if __name__ == "__main__":
    main()
