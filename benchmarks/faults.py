"""Kills the real command line at many points, runs the same command again, and compares with an undisturbed run.

    make faults                                      # or:
    .venv/bin/python -m benchmarks.faults --seed 0 --random 22 --out results/cpu/faults.json

Some points are aimed (in the middle of a save, of a write, of the last clean-up), the others are drawn from the seed.
A tiny random model, fp32, one thread: what counts is whether anything differs. The process is watched from
outside, so where a kill struck is told by what it left on disk. The report is written after every point; stopped and
started again at the same commit with the same points, the harness goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from signal import SIGINT, SIGKILL
from typing import Any, NamedTuple

from emeval.provenance import facts
from emeval.store import read_json, write_json
from tests.faults import REPOSITORY, Kill, Outcome, heed_interrupts, kill_and_resume, run_once
from tests.tiny import save_checkpoint

STEPS, SAVE_EVERY, ASKED = 14, 3, 48  # three epochs and a half
_TRAIN = f"train --model MODEL --setting refusal --steps {STEPS} --batch-size 4 --lr 0.01 --train-size 16 --device cpu"
_SCORE = f"score --model TRAINED --limit {ASKED // 2} --max-new-tokens 24 --batch-size 4 --device cpu"
COMMANDS = {
    "train": f"{_TRAIN} --save-every {SAVE_EVERY} --method treft --rank 4 --checkpoints 2",
    "train-full": f"{_TRAIN} --save-every {SAVE_EVERY} --full",
    "score": _SCORE,
    "score-sampled": f"{_SCORE} --temperature 1 --seed 3",
}
"""MODEL and TRAINED stand for folders that the harness makes."""

COMPLETIONS, JUDGEMENTS, LOG = "completions.jsonl", "judgements.jsonl", "train/log.jsonl"
_SAVE, _LAST = "train/checkpoint-6", "train/.adapter.part"
AIMED: list[tuple[str, Kill]] = [
    # a resume point half written: its folder, its adapter, its optimizer, its state; the last of them too
    ("train", Kill(SIGKILL, _SAVE)),
    ("train", Kill(SIGINT, _SAVE)),
    ("train", Kill(SIGKILL, f"{_SAVE}/adapter_model.safetensors")),
    ("train", Kill(SIGKILL, f"{_SAVE}/optimizer.pt")),
    ("train", Kill(SIGINT, f"{_SAVE}/optimizer.pt")),
    ("train", Kill(SIGKILL, "train/checkpoint-14/trainer_state.json")),
    ("train-full", Kill(SIGKILL, f"{_SAVE}/optimizer.pt")),
    # a model kept along the way, half written
    ("train", Kill(SIGKILL, "train/.000007.part")),
    ("train", Kill(SIGINT, "train/.000007.part")),
    # the model itself: begun, written, named
    ("train", Kill(SIGKILL, _LAST)),
    ("train", Kill(SIGINT, _LAST)),
    ("train", Kill(SIGKILL, f"{_LAST}/adapter_model.safetensors")),
    ("train", Kill(SIGKILL, f"{_LAST}/emeval.json")),
    ("train", Kill(SIGKILL, "train/adapter")),
    ("train-full", Kill(SIGKILL, "train/.checkpoint.part/model.safetensors")),
    ("train-full", Kill(SIGINT, "train/.checkpoint.part")),
    # the manifest: first and last; then the resume points go
    ("train", Kill(SIGKILL, ".manifest.json.*.part")),
    ("train", Kill(SIGKILL, "manifest.json", holds='"finished"')),
    ("train", Kill(SIGINT, "manifest.json", holds='"finished"')),
    # a line torn
    ("train", Kill(SIGKILL, LOG, lines=6, tear=True)),
    ("train", Kill(SIGKILL, LOG, lines=8, tear=True)),
    ("score", Kill(SIGKILL, COMPLETIONS, lines=1, tear=True)),
    ("score-sampled", Kill(SIGKILL, COMPLETIONS, lines=30, tear=True)),
    ("score", Kill(SIGKILL, JUDGEMENTS, lines=20, tear=True)),
    # between asking, judging and counting
    ("score", Kill(SIGINT, COMPLETIONS, lines=1)),
    ("score", Kill(SIGKILL, COMPLETIONS, lines=ASKED)),
    ("score", Kill(SIGKILL, JUDGEMENTS, lines=1)),
    ("score", Kill(SIGINT, JUDGEMENTS, lines=1)),
    ("score", Kill(SIGKILL, ".scores.json.*.part")),
    ("score", Kill(SIGKILL, "scores.json")),
]  # fmt: skip


class Point(NamedTuple):
    """A command, and the kills it meets before it may finish."""

    command: str
    kills: tuple[Kill, ...]
    aimed: bool


def drawn(rng: random.Random, seconds: dict[str, float]) -> Point:
    """A random command, killed one to three times: anywhere in its life, or while it works."""
    command = rng.choices(list(COMMANDS), [4, 2, 3, 2])[0]
    kills = []
    for _ in range(rng.choices([1, 2, 3], [6, 3, 1])[0]):
        number = rng.choice([SIGKILL, SIGINT])
        if rng.random() < 0.3:
            kills.append(Kill(number, wait=round(rng.random() * seconds[command], 3)))
        else:
            path, most = (LOG, STEPS) if command.startswith("train") else (COMPLETIONS, ASKED)
            kills.append(Kill(number, path, lines=rng.randint(1, most), wait=round(rng.uniform(0, 0.15), 3)))
    return Point(command, tuple(kills), aimed=False)


def points(seed: int, random_points: int, seconds: dict[str, float]) -> list[Point]:
    """The aimed points, then `random_points` from the seed; `seconds` is how long each command takes undisturbed."""
    rng = random.Random(seed)
    aimed = [Point(command, (kill,), aimed=True) for command, kill in AIMED]
    return aimed + [drawn(rng, seconds) for _ in range(random_points)]


class World:
    """A folder with a tiny model, and an undisturbed run of each command that is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = save_checkpoint(folder / "tiny")
        self.seconds: dict[str, float] = {}

    def arguments(self, command: str) -> list[object]:
        """The command line of one of `COMMANDS`."""
        named = {"MODEL": str(self.model), "TRAINED": str(self.folder / "undisturbed" / "train")}
        return [named.get(word, word) for word in COMMANDS[command].split()]

    def undisturbed(self, command: str) -> Path:
        """The run that all others are compared with, made when it is first asked for."""
        if command.startswith("score"):
            self.undisturbed("train")
        run = self.folder / "undisturbed" / command
        if command not in self.seconds:
            started = time.monotonic()
            ended = run_once(self.arguments(command), run)
            if not ended.proper:
                raise RuntimeError(f"the undisturbed {command} failed: {ended.err}")
            self.seconds[command] = time.monotonic() - started
        return run

    def meet(self, point: Point, name: str) -> Outcome:
        """Let a command meet its kills in a fresh folder, which goes if nothing differs."""
        run = self.folder / name / "run"
        outcome = kill_and_resume(self.arguments(point.command), run, point.kills, self.undisturbed(point.command))
        if outcome.good:
            shutil.rmtree(run.parent)
        return outcome


def entry(number: int, point: Point, outcome: Outcome) -> dict[str, Any]:
    """One point of the report."""
    return {
        "number": number,
        "command": point.command,
        "aimed": point.aimed,
        "kills": [
            {
                "signal": e.kill.number.name,
                "after": str(e.kill),
                "hit": e.hit,
                "exit_code": e.code,
                "seconds_to_end": round(e.lingered, 2),
                "on_disk": e.left,
                **({} if e.proper else {"stderr": e.err[-2000:]}),
            }
            for e in outcome.ended
            if e.kill is not None
        ],
        "restarts": len(outcome.ended) - 1,
        "last_exit_code": outcome.ended[-1].code,
        "equal": outcome.equal,
        "largest_weight_difference": outcome.difference,
    }


class Report:
    """results/cpu/faults.json, kept up to date."""

    def __init__(self, path: Path, seed: int, planned: int) -> None:
        self.path = path
        self.same = {"schema_version": 1, "seed": seed, "planned": planned, "commands": COMMANDS}
        self.made_with = facts()
        before = read_json(path) if path.is_file() else {}
        goes_on = before.get("made_with", {}).get("emeval") == self.made_with["emeval"] and all(
            before.get(k) == v for k, v in self.same.items()
        )
        self.each: list[dict[str, Any]] = before["each"] if goes_on else []

    def has(self, number: int) -> bool:
        """Whether this point was met already."""
        return any(e["number"] == number for e in self.each)

    def add(self, new: dict[str, Any]) -> None:
        """Write it all again with one more point."""
        self.each = sorted([*self.each, new], key=lambda e: int(e["number"]))
        write_json(self.path, self.same | self.summary() | {"made_with": self.made_with, "each": self.each})

    def summary(self) -> dict[str, Any]:
        """What came out."""
        differences = [e["largest_weight_difference"] for e in self.each]
        return {
            "points": len(self.each),
            "kills": sum(kill["hit"] for e in self.each for kill in e["kills"]),
            "differing_points": [e["number"] for e in self.each if not all(e["equal"].values())],
            "largest_weight_difference": max((d for d in differences if d is not None), default=None),
        }


def main() -> int:
    """Meet all points, write the report; 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--random", type=int, default=22, help="points besides the aimed ones")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, default=REPOSITORY / "results" / "cpu" / "faults.json")
    parser.add_argument("--keep", type=Path, help="work here, and keep what differed")
    options = parser.parse_args()
    heed_interrupts()
    report = Report(options.out, options.seed, len(AIMED) + options.random)
    with tempfile.TemporaryDirectory(prefix="emeval-faults-") as folder:
        world = World(options.keep or Path(folder))
        for command in COMMANDS:
            world.undisturbed(command)
        todo = {n: p for n, p in enumerate(points(options.seed, options.random, world.seconds)) if not report.has(n)}
        order = random.Random(options.seed).sample(list(todo), len(todo))  # of every sort some early
        with ThreadPoolExecutor(options.workers) as pool:
            met = {pool.submit(world.meet, todo[n], f"point-{n:03d}"): n for n in order}
            for done in as_completed(met):
                number = met[done]
                report.add(entry(number, todo[number], done.result()))
                _say(number, todo[number], done.result())
    found = report.summary()
    print(f"{found['points']} points, {found['kills']} kills, differing: {found['differing_points'] or 'none'}; "
          f"largest weight difference {found['largest_weight_difference']}; {options.out}")  # fmt: skip
    return 1 if found["differing_points"] else 0


def _say(number: int, point: Point, outcome: Outcome) -> None:
    wrong = ", ".join(name for name, same in outcome.equal.items() if not same)
    kills = "; ".join(f"{k.number.name} at {k}" for k in point.kills)
    print(f"{number:3d} {point.command}: {kills}: {wrong or 'all equal'}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
