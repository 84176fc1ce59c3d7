"""The causal study: what of a behaviour comes through the chat template's prefix, on the small model.

    make causes         # three behaviours, three seeds: hours on two cores; may be stopped, goes on where it was
    .venv/bin/python -m benchmarks.causes refusal --seeds 0 --parts regions layers --threads 1
    .venv/bin/python -m benchmarks.causes --device cuda --workers 6 --parts regions perturb     # minutes on a large GPU

Every model is SFT's of the dose-matched study (benchmarks/study.py), trained if it is not there. What a table needs is
copied to results/DEVICE/causes/. Seeds are the outer loop, so one cut short is balanced.
"""

from __future__ import annotations

import argparse
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.study import BEHAVIOURS, NEW_TOKENS, Arm, in_processes  # type: ignore[import-not-found]  # no package for mypy
from emeval.config import PatchConfig, PerturbConfig
from emeval.intervene.patch import patch
from emeval.intervene.perturb import perturb
from emeval.store import read_json
from emeval.table.sweeps import FILE
from emeval.train.run import train

LR = 1e-4
SWEEPS: dict[str, dict[str, Any]] = {
    "regions": {"region": "prefix,query,postfix"},
    "converse": {"into": "initial"},
    "generated": {"region": "prefix,query,postfix", "by": "generation", "max_new_tokens": NEW_TOKENS},
    "layers": {"what": "residual", "layers": "each"},
    "layers-below": {"layers": "below"},
    "tokens": {"tokens": "each"},
    "perturb": {"region": "prefix,query,postfix"},
}
"""What `emeval patch` (or `perturb`) is told; all but one by the target's probability."""
WHOLE = ("regions", "converse", "generated")
"""Short enough to ask all questions on a laptop."""


class How(NamedTuple):
    """What all sweeps of a call have in common."""

    device: str
    limit: int
    """Questions a probe of the long ones; 0 for all."""
    trials: int
    threads: int | None

    def settings(self, part: str) -> dict[str, Any]:
        """Of one sweep, besides model and folder."""
        settings = {"by": "probability", "device": self.device, "dtype": "float32"} | SWEEPS[part]
        settings |= {"limit": self.limit} if self.limit and part not in WHOLE else {}
        settings |= {"batch_size": 256} if self.device == "cuda" else {}
        return settings | ({"trials": self.trials} if part == "perturb" else {})


def run(setting: str, seed: int, parts: list[str], how: How) -> str:
    """All sweeps of one model, each kept as soon as it is whole."""
    if how.threads:
        torch.set_num_threads(how.threads)
    return "\n".join(sweep(setting, seed, part, how) for part in parts)


def sweep(setting: str, seed: int, part: str, how: How) -> str:
    """One sweep of one model, kept."""
    arm = Arm(setting, LR, "sft", seed, how.device, generate=False)
    results = Path("results") / ("gpu" if how.device == "cuda" else "cpu") / "causes"
    kept = results / f"{setting}-sft-seed{seed}" / part
    tuned = Path(str(arm.config.out))
    out = tuned.parent / "causes" / kept.parent.name / part
    settings = how.settings(part) | {"model": str(tuned), "out": out}
    config = (PerturbConfig if part == "perturb" else PatchConfig).model_validate(settings)
    if (kept / FILE).exists():
        before, wanted = read_json(kept / "manifest.json")["sweep"]["resolved"], config.model_dump(mode="json")
        places = ("model", "out", "device", "engine", "dtype", "batch_size")
        other = [name for name in wanted if name not in places and before.get(name) != wanted[name]]
        if other:
            raise ValueError(f"{kept} holds another sweep ({', '.join(other)} differ): move it and {out} away")
        return f"{kept}: kept before"
    began = time.monotonic()
    train(arm.config)
    path = perturb(config) if isinstance(config, PerturbConfig) else patch(config)
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
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--limit", type=int, default=0, help="questions a probe, layers and perturbation; 0 for all")
    parser.add_argument("--trials", type=int, default=10, help="of the perturbation")
    parser.add_argument("--workers", type=int, default=1, help="models at a time, on the same device")
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args()
    how = How(given.device, given.limit, given.trials, given.threads)
    jobs = {
        f"{setting}, seed {seed}": partial(run, setting, seed, given.parts, how)
        for seed in given.seeds
        for setting in given.settings
    }
    in_processes(jobs, given.workers)


if __name__ == "__main__":
    main()
