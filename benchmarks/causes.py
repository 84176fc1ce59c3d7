"""The causal study: what of a behaviour comes through the chat template's prefix, on the small model.

    make causes         # three behaviours, three seeds: hours on two cores; may be stopped, goes on where it was
    .venv/bin/python -m benchmarks.causes refusal --seeds 0 --parts regions layers --threads 1

Every model is SFT's of the dose-matched study (benchmarks/study.py), trained if it is not there. What a table needs is
copied to results/cpu/causes/. Seeds are the outer loop, so one cut short is balanced.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.study import BEHAVIOURS, Arm  # type: ignore[import-not-found]  # no package for mypy
from emeval.config import PatchConfig, PerturbConfig
from emeval.intervene.patch import patch
from emeval.intervene.perturb import perturb
from emeval.table.sweeps import FILE
from emeval.train.run import train

LR = 1e-4
SWEEPS: dict[str, dict[str, Any]] = {
    "regions": {"region": "prefix,query,postfix"},
    "converse": {"into": "initial"},
    "layers": {"what": "residual", "layers": "each", "limit": 40},
    "layers-below": {"layers": "below", "limit": 40},
    "tokens": {"tokens": "each", "limit": 40},
    "perturb": {"region": "prefix,query,postfix", "trials": 5, "limit": 40},
}
"""What `emeval patch` (or `perturb`) is told, all by the target's probability; long ones ask 40 questions a probe."""
KEPT = Path("results") / "cpu" / "causes"


def run(setting: str, seed: int, part: str) -> str:
    """One sweep of one model, kept."""
    arm = Arm(setting, LR, "sft", seed, "cpu", generate=False)
    kept = KEPT / f"{setting}-sft-seed{seed}" / part
    if (kept / FILE).exists():
        return f"{kept}: kept before"
    began = time.monotonic()
    tuned = train(arm.config)
    out = tuned.parent / "causes" / kept.parent.name / part
    settings = {"model": str(tuned), "by": "probability", "device": "cpu", "dtype": "float32", "out": out}
    settings |= SWEEPS[part]
    if part == "perturb":
        path = perturb(PerturbConfig.model_validate(settings))
    else:
        path = patch(PatchConfig.model_validate(settings))
    kept.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path / "manifest.json", kept / "manifest.json")
    shutil.copyfile(path / FILE, kept / f".{FILE}")
    (kept / f".{FILE}").rename(kept / FILE)
    return f"{kept}: {time.monotonic() - began:.0f} s"


def main() -> None:
    """All sweeps that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", default=list(BEHAVIOURS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", choices=[*SWEEPS], default=["regions", "converse", "layers"])
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    for seed in given.seeds:
        for part in given.parts:
            for setting in given.settings:
                print(run(setting, seed, part), flush=True)


if __name__ == "__main__":
    main()
