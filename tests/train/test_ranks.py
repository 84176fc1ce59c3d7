"""Several processes on gloo: the same training as one, and it goes on where a killed process left it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from emeval.config import TrainConfig
from emeval.errors import InputError
from emeval.store import read_json
from emeval.train.run import train

SETTINGS: dict[str, Any] = {
    "setting": "refusal", "batch_size": 8, "train_size": 16, "steps": 4, "lr": 1e-3, "rank": 4, "device": "cpu",
}  # fmt: skip


def command(model: Path, out: Path, **changes: Any) -> list[str]:
    settings = SETTINGS | {"model": model, "out": out, "processes": 2} | changes
    options = [part for key, value in settings.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    return [sys.executable, "-m", "emeval", "train", *options, "--quiet"]


def log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "train" / "log.jsonl").read_text().splitlines()]


def assert_alike(one: Path, other: Path) -> None:
    for a, b in zip(log(one), log(other), strict=True):
        for name in ("loss", "grad_norm", "kv_drift", "kl"):
            assert (name in a) == (name in b)
            # KL is a mean over a process's reply tokens: of unlike rows, a mean of means is another.
            assert name not in a or a[name] == pytest.approx(b[name], rel=1e-2 if name == "kl" else 1e-4, abs=1e-8), (
                name
            )
    a, b = (load_file(run / "train" / "adapter" / "adapter_model.safetensors") for run in (one, other))
    assert a.keys() == b.keys() and max((a[n] - b[n]).abs().max().item() for n in a) < 1e-4


@pytest.mark.parametrize(
    "method",
    [
        {"method": "treft", "lambda": 3.0, "checkpoints": 2},
        {"method": "treft", "region": "query", "lambda": 3.0},
        {"method": "kl-retain", "lambda": 3.0},
    ],
    ids=["prefix", "query", "kl-retain"],
)
def test_two_processes_train_as_one(tiny_checkpoint: Path, tmp_path: Path, method: dict[str, Any]) -> None:
    settings = SETTINGS | {"model": str(tiny_checkpoint), "out": tmp_path / "one", "shared_prefix": False}
    one = train(TrainConfig.model_validate(settings | method))
    done = subprocess.run(command(tiny_checkpoint, tmp_path / "two", **method), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_alike(one, tmp_path / "two")
    section = read_json(tmp_path / "two" / "manifest.json")["train"]
    assert (section["status"], section["processes"]) == ("finished", 2)
    kept = list((tmp_path / "two" / "train").glob("steps/*"))
    assert len(kept) == method.get("checkpoints", 0)


def test_it_goes_on_after_one_of_them_was_killed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    given = {"method": "treft", "lambda": 3.0, "steps": 40, "save_every": 1}
    settings = SETTINGS | {"model": str(tiny_checkpoint), "out": tmp_path / "one", "shared_prefix": False}
    one = train(TrainConfig.model_validate(settings | given))
    two = tmp_path / "two"
    running = subprocess.Popen(command(tiny_checkpoint, two, **given), stderr=subprocess.PIPE, text=True)
    while not (two / "train" / "log.jsonl").exists() or len(log(two)) < 5:
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.02)
    ranks = [p for p in psutil.Process(running.pid).children(recursive=True) if p.environ().get("RANK") == "1"]
    ranks[-1].send_signal(signal.SIGKILL)
    _, said = running.communicate(timeout=120)
    assert running.returncode == 1 and "one of 2 training processes failed" in said.splitlines()[-1]
    assert not any(rank.is_running() for rank in ranks)
    assert read_json(two / "manifest.json")["train"]["status"] == "running"
    again = subprocess.run(command(tiny_checkpoint, two, **given), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert read_json(two / "manifest.json")["train"]["results"]["resumed_at"] >= 1
    assert_alike(one, two)


def test_what_is_wrong_is_told_once_before_anything_is_started(tiny_checkpoint: Path, tmp_path: Path) -> None:
    wrong = command(tiny_checkpoint, tmp_path / "run", setting="refusall")
    done = subprocess.run(wrong, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_rows_that_cannot_be_shared_are_refused_and_nothing_is_written(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = subprocess.run(command(tiny_checkpoint, tmp_path / "run", batch_size=9), capture_output=True, text=True)
    assert done.returncode == 2 and "9 rows a step cannot be shared by 2 processes" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_from_python_several_processes_are_somebody_elses_to_start(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = SETTINGS | {"model": str(tiny_checkpoint), "out": tmp_path / "run", "processes": 4}
    with pytest.raises(InputError, match="asks for 4 processes, this is one of 1"):
        train(TrainConfig.model_validate(settings))
