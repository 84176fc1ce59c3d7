"""Killing the real command line and looking at what is left: used by tests/test_faults.py and benchmarks/faults.py.

Nothing in the package helps: the process is watched from outside (its run folder and the clock) and gets a real signal.
A line is torn by cutting the file after the kill, as a power cut leaves it; no signal does that to so short a write.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
INTERRUPTED = "emeval: interrupted; what was stored is kept. Run the same command again to go on.\n"
_LIMIT = 1800.0
"""Seconds any one process may take: many, since a busy machine is no failure."""


@dataclass(frozen=True)
class Kill:
    """One signal, and what it waits for: a file of the run, or the command's own code to run; then `wait` seconds."""

    number: signal.Signals
    path: str | None = None
    """A pattern below the run folder."""
    lines: int = 0
    """Whole lines the file must have."""
    holds: str = ""
    """Text the file must hold."""
    wait: float = 0.0
    tear: bool = False
    """Cut the file's last line in the middle afterwards."""

    def __str__(self) -> str:
        parts = [f"{self.path} is there" if self.path else "its start"]
        parts += [f"with {self.lines} lines"] if self.lines else []
        parts += [f"with {self.holds}"] if self.holds else []
        parts += [f"+ {self.wait:.3f} s"] if self.wait or not self.path else []
        return " ".join([*parts, "(last line torn)"] if self.tear else parts)

    def due(self, run: Path, pid: int) -> bool:
        """Whether what it waits for has happened."""
        # Before emeval is there Python itself answers a signal, and what is waited for may lie there since the last
        # start. Linux tells which libraries a process has loaded.
        started = False
        with contextlib.suppress(OSError):
            started = "pydantic_core" in Path(f"/proc/{pid}/maps").read_text()
        if self.path is None or not started:
            return started
        found = next(run.glob(self.path), None)
        if found is None or not (self.lines or self.holds):
            return found is not None
        with contextlib.suppress(FileNotFoundError):
            content = found.read_bytes()
            return content.count(b"\n") >= self.lines and self.holds.encode() in content
        return False


@dataclass
class Ended:
    """How one process ended."""

    kill: Kill | None
    code: int
    out: str
    err: str
    hit: bool
    """The signal reached a living process."""
    told: bool
    """Its result was out already."""
    lingered: float
    """Seconds from the signal to the end."""
    left: list[str]
    """What of the run was on disk then."""
    alone: bool
    """No process of its group lives on."""

    @property
    def proper(self) -> bool:
        """The right exit code, and one line for an interruption; nothing for a process that was killed."""
        if self.kill is None or not self.hit:
            return self.code == 0 and self.err == ""
        if self.kill.number == signal.SIGKILL:
            return self.code == -signal.SIGKILL and self.err == ""
        over = self.told and self.code == 0 and self.err == ""
        # Where the interrupt fell into code that Python compiles from text (a named tuple's, say), CPython ends the
        # process by the signal itself after we have caught it and said our line; a shell sees 130 either way.
        return over or (self.code in (130, -signal.SIGINT) and self.err == INTERRUPTED)


@dataclass
class Outcome:
    """A command killed one or more times and run to its end."""

    ended: list[Ended]
    equal: dict[str, bool] = field(default_factory=dict)
    difference: float | None = None
    """Largest difference of any weight from the undisturbed run's."""

    @property
    def good(self) -> bool:
        """Nothing differs from an undisturbed run."""
        return all(self.equal.values())


def environment() -> dict[str, str]:
    """One thread, so that sums are the same every time; this repository's emeval; no settings from outside."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EMEVAL_") or k == "EMEVAL_CACHE_DIR"}
    return kept | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def heed_interrupts() -> None:
    """Who is started in a shell's background is told to ignore SIGINT, and would tell our processes so."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_once(arguments: Iterable[object], run: Path, kill: Kill | None = None) -> Ended:
    """Run `emeval ARGUMENTS --out RUN --quiet`, and send the signal where it is due."""
    command = [sys.executable, "-m", "emeval", *map(str, arguments), "--out", str(run), "--quiet"]
    run.parent.mkdir(parents=True, exist_ok=True)
    out, err = (run.parent / f"{run.name}.{name}" for name in ("stdout", "stderr"))
    hit, told, lingered = False, False, 0.0
    with out.open("wb") as to_out, err.open("wb") as to_err:
        process = subprocess.Popen(
            command, cwd=run.parent, env=environment(), stdout=to_out, stderr=to_err, start_new_session=True
        )
        try:
            if kill is not None and _await(process, run, kill):
                sent = time.monotonic()
                hit = process.poll() is None
                process.send_signal(kill.number)
                told = out.stat().st_size > 0
                process.wait(_LIMIT)
                lingered = time.monotonic() - sent
            code = process.wait(_LIMIT)
            alone = _group_ends(process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    left = describe(run)
    if kill is not None and kill.tear and hit:
        _tear(next(run.glob(kill.path or "")))
    return Ended(kill, code, out.read_text(), err.read_text(), hit, told, lingered, left, alone)


def _await(process: subprocess.Popen[bytes], run: Path, kill: Kill) -> bool:
    """True once the kill is due, False if the process ended before."""
    while not kill.due(run, process.pid):
        if process.poll() is not None:
            return False
        time.sleep(0.001)  # a small adapter is saved in milliseconds
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(kill.wait)
    return process.poll() is None


def _group_ends(group: int) -> bool:
    """Whether nobody is left; a `git` that was asked for the commit may take a moment to find its reader gone."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def _tear(path: Path) -> None:
    content = path.read_bytes()
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    path.write_bytes(content[: last + max(1, (len(content) - last) // 2)])


def describe(run: Path) -> list[str]:
    """What of a run is on disk: counts of lines, resume points whole or half, models, and anything half-written."""
    found = []
    for name in ("train/log.jsonl", "completions.jsonl", "judgements.jsonl"):
        if (run / name).is_file():
            count = (run / name).read_bytes().count(b"\n")
            found.append(f"{name}: {count} lines")
    for path in sorted(run.glob("train/checkpoint-*")):
        found.append(f"{path.name}: {'whole' if (path / 'emeval-whole').is_file() else 'half'}")
    for name in ("manifest.json", "train/adapter", "train/checkpoint", "scores.json"):
        found += [name] if (run / name).exists() else []
    return found + [str(p.relative_to(run)) for p in litter(run) if not p.name.startswith("checkpoint-")]


def litter(run: Path) -> list[Path]:
    """What only an unfinished run may hold: resume points, and files and folders begun aside."""
    hidden = [p for p in run.rglob(".*") if p.name != ".lock" and not any("checkpoint-" in q.name for q in p.parents)]
    return sorted([*hidden, *run.glob("train/checkpoint-*")])


def kill_and_resume(arguments: list[object], run: Path, kills: Iterable[Kill], undisturbed: Path) -> Outcome:
    """Run a command, kill it once for each of `kills`, let it finish, and compare with an undisturbed run."""
    ended = []
    for kill in kills:
        ended.append(run_once(arguments, run, kill))
        if not ended[-1].hit:  # it was faster: nothing is left to kill
            break
    ended.append(run_once(arguments, run))
    equal, difference = compare(run, undisturbed)
    equal |= {
        "exit codes and messages": all(e.proper for e in ended),
        "no process left": all(e.alone for e in ended),
        "nothing half-written left": litter(run) == [],
    }
    return Outcome(ended, equal, difference)


# ------------------------------------------------------------------------------------------------------------ comparing


def compare(run: Path, undisturbed: Path) -> tuple[dict[str, bool], float | None]:
    """What is the same in two finished runs, by name; and the largest difference of a weight."""
    equal: dict[str, bool] = {}
    difference = None
    if (undisturbed / "train").is_dir():
        difference = _largest_difference(run, undisturbed)
        steps = [entry["step"] for entry in records(run / "train" / "log.jsonl")]
        equal["weights to 1e-6"] = difference is not None and difference <= 1e-6
        equal["names of the weights"] = _notes(run) == _notes(undisturbed)
        equal["each step logged once"] = steps == list(range(1, _finished_steps(undisturbed) + 1))
        equal["status"] = _finished_steps(run) == _finished_steps(undisturbed)
    if (undisturbed / "scores.json").is_file():
        for name in ("completions", "judgements"):
            ours, theirs = (records(p / f"{name}.jsonl") for p in (run, undisturbed))
            equal[f"keys of {name}"] = _keys(ours) == _keys(theirs)
            equal[name] = sorted(map(json.dumps, ours)) == sorted(map(json.dumps, theirs))
        equal["scores"] = (run / "scores.json").is_file() and (run / "scores.json").read_bytes() == (
            undisturbed / "scores.json"
        ).read_bytes()
    return equal, difference


def records(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _keys(entries: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return sorted((entry["probe"], entry["key"]) for entry in entries)


def _finished_steps(run: Path) -> int:
    train = json.loads((run / "manifest.json").read_text())["train"]
    return int(train["steps"]) if train["status"] == "finished" else -1


def _weights(run: Path) -> dict[str, Path]:
    found = run.glob("train/**/*.safetensors")
    return {str(p.relative_to(run)): p for p in found if "checkpoint-" not in str(p.relative_to(run))}


def _notes(run: Path) -> dict[str, str]:
    """The id each kept model is known by."""
    return {p.parent.name: json.loads(p.read_text())["recipe"] for p in run.glob("train/**/emeval.json")}


def _largest_difference(run: Path, undisturbed: Path) -> float | None:
    """Over all models the runs kept. None where they kept different ones."""
    from safetensors.torch import load_file

    ours, theirs = _weights(run), _weights(undisturbed)
    if ours.keys() != theirs.keys():
        return None
    largest = 0.0
    for name, path in theirs.items():
        a, b = load_file(ours[name]), load_file(path)
        if a.keys() != b.keys():
            return None
        largest = max([largest, *((a[k].float() - b[k].float()).abs().max().item() for k in b)])
    return largest
