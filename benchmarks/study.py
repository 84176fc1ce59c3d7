"""The dose-matched study: SFT against TReFT on the small model, every arm trained, scored along the way, and kept.

    make study          # all arms of all behaviours: hours on two cores; may be stopped, goes on where it was
    .venv/bin/python -m benchmarks.study refusal --lr 1e-4 --methods sft treft30 treft300 --seeds 0 1
    .venv/bin/python -m benchmarks.study finance health --lr 1e-4 --methods sft interleave treft100
    .venv/bin/python -m benchmarks.study --device cuda --workers 8 --generate      # minutes on a large GPU

Each run lies in results/runs/study-DEVICE/ with its models; what a table needs of it (manifest.json, checkpoints.json)
is copied to results/DEVICE/study/ as soon as it is whole. Seeds are the outer loop, so one cut short is balanced.
"""

from __future__ import annotations

import argparse
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from emeval.checkpoints import FILE, score_checkpoints
from emeval.config import ScoreConfig, TrainConfig
from emeval.store import read_json
from emeval.train.run import train

BEHAVIOURS = ("refusal", "abstention", "tool-use")
DOMAINS = ("finance", "health", "legal", "auto")
STEPS = {1e-4: 16, 3e-5: 48}
"""Optimiser steps of SFT on a behaviour, by learning rate: after them it shows the behaviour nearly always."""
DOMAIN_STEPS = {1e-4: 20, 3e-5: 60}
"""An epoch of a domain's 160 rows, and three."""
CHECKPOINTS = 8
DEFAULTS = {False: ("sft", "treft3", "treft30", "treft300"), True: ("sft", "interleave", "treft100")}
"""Methods of a behaviour, and of a domain."""
NEW_TOKENS = 48
"""Of a generated reply: the detectors of these behaviours read its beginning."""


class Arm(NamedTuple):
    """One run of the study."""

    setting: str
    lr: float
    method: str
    """As on the command line: sft, interleave, treft30, treft-query30, kl-train1 ..."""
    seed: int
    device: str
    generate: bool
    kept: int = CHECKPOINTS
    """Models kept and scored along the run."""
    splits: tuple[str, ...] = ("val", "test")

    @property
    def name(self) -> str:
        """Its folder's name."""
        return f"{self.setting}-lr{self.lr:g}-{self.method}-seed{self.seed}"

    @property
    def steps(self) -> int:
        """What learns more slowly is given more steps, or it never comes to where the others are compared."""
        method, lam = split(self.method)
        slower = 1.25 if method in ("interleave", "kl-retain") else 1.0
        if method.startswith("treft") and lam is not None:
            slower = next(factor for least, factor in ((300, 3.0), (100, 2.0), (30, 1.5), (0, 1.0)) if lam >= least)
        steps = DOMAIN_STEPS if self.setting in DOMAINS else STEPS
        if self.lr not in steps:
            raise SystemExit(f"--lr {self.lr:g}: the study knows {', '.join(f'{lr:g}' for lr in steps)}")
        return round(steps[self.lr] * slower)

    @property
    def config(self) -> TrainConfig:
        """Its training settings."""
        method, lam = split(self.method)
        name, _, region = method.partition("-") if method.startswith("treft-") else (method, "", "")
        settings = {
            "model": "smollm2-135m", "setting": self.setting, "method": name, "rank": 32, "lr": self.lr,
            "batch_size": 8, "micro_batch": 8, "steps": self.steps, "checkpoints": self.kept, "seed": self.seed,
            "device": self.device, "dtype": "float32", "out": Path("results/runs") / f"study-{self.device}" / self.name,
            "save_every": self.steps,  # an arm takes minutes: one cut short starts again
        }  # fmt: skip
        settings |= {} if lam is None else {"lambda": lam}
        return TrainConfig.model_validate(settings | ({"region": region} if region else {}))


def split(method: str) -> tuple[str, float | None]:
    """`treft30` as ("treft", 30.0)."""
    found = re.fullmatch(r"([a-z-]*[a-z])([\d.]+)?", method)
    if found is None:
        raise SystemExit(f"{method}: write a method and its lambda, as treft30")
    return found[1], float(found[2]) if found[2] else None


def run(arm: Arm, threads: int | None) -> str:
    """Train, score on val and test, keep what a table needs. What is done already is not done again."""
    if threads:
        torch.set_num_threads(threads)
    kept = Path("results") / ("gpu" if arm.device == "cuda" else "cpu") / "study" / arm.name
    ways = ["contrast"] if arm.setting in DOMAINS else ["probability", *(["generation"] if arm.generate else [])]
    if (kept / FILE).exists():
        check_kept(arm, kept, ways)
        return f"{arm.name}: kept before"
    began = time.monotonic()
    folder = train(arm.config)
    trained = time.monotonic()
    for by in ways:
        for of in arm.splits:
            asked: dict[str, Any] = {
                "model": str(folder),
                "split": of,
                "checkpoints": True,
                "by": by,
                "device": arm.device,
            }
            asked |= {"dtype": "float32", "max_new_tokens": NEW_TOKENS}
            score_checkpoints(ScoreConfig.model_validate(asked | {"batch_size": 256 if arm.device == "cuda" else 32}))
    kept.mkdir(parents=True, exist_ok=True)
    for name in ("manifest.json", FILE):
        shutil.copyfile(folder / name, kept / f".{name}")
        (kept / f".{name}").rename(kept / name)
    shutil.rmtree(folder / "train" / "steps")  # 40 MB a model
    return f"{arm.name}: trained in {trained - began:.0f} s, scored in {time.monotonic() - trained:.0f} s"


def check_kept(arm: Arm, kept: Path, ways: list[str]) -> None:
    """ValueError if what is kept under an arm's name is another arm's, or was scored in fewer ways."""
    before = read_json(kept / "manifest.json")["train"]["resolved"]
    wanted = arm.config.model_dump(mode="json", by_alias=True)
    other = [k for k in ("lr", "method", "region", "lambda", "rank", "steps") if before[k] != wanted[k]]
    other += sorted(set(ways) - {point["mode"] for point in read_json(kept / FILE)["points"]})
    if other:
        raise ValueError(f"{kept} holds another arm ({', '.join(other)} differ): move it away")


def main() -> None:
    """All arms that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", default=list(BEHAVIOURS))
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-4, 3e-5])
    parser.add_argument(
        "--methods", nargs="+", help="default: sft and TReFT at several lambdas; interleave for domains"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--generate", action="store_true", help="score behaviours by generation too")
    parser.add_argument("--kept", type=int, default=CHECKPOINTS, help="models kept and scored along each run")
    parser.add_argument("--splits", nargs="+", choices=["val", "test"], default=["val", "test"])
    parser.add_argument("--workers", type=int, default=1, help="arms at a time, on the same device")
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args()
    arms = [
        Arm(setting, lr, method, seed, given.device, given.generate, given.kept, tuple(given.splits))
        for seed in given.seeds
        for lr in given.lr
        for setting in given.settings
        for method in given.methods or DEFAULTS[setting in DOMAINS]
    ]
    for arm in arms:
        arm.config  # noqa: B018  what cannot be trained is told before anything is
    in_processes({arm.name: partial(run, arm, given.threads) for arm in arms}, given.workers)


def in_processes(jobs: dict[str, Callable[[], str]], workers: int) -> None:
    """Each job in a process of its own, `workers` at a time; prints what they say. SystemExit 1 if one failed."""
    lost = 0
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        names = {pool.submit(job): name for name, job in jobs.items()}
        for done in as_completed(names):
            error = done.exception()
            lost += error is not None
            print(f"{names[done]}: {error}" if error else done.result(), flush=True)
    if lost:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
