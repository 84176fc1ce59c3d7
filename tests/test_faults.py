"""Killed and resumed: the real command line meets real signals and ends as if nothing had happened (DESIGN 12).

A handful of the points of `make faults`, each where a run is most easily hurt; which line is torn comes from a seed.
"""

from __future__ import annotations

import random
from pathlib import Path
from signal import SIGINT, SIGKILL

import pytest
import torch

from emeval.cli.app import run as emeval
from tests.faults import Kill, Outcome, heed_interrupts, kill_and_resume

TRAIN = "--setting refusal --steps 6 --batch-size 4 --rank 4 --lr 0.01 --train-size 16 --save-every 2 --device cpu"
SCORE = "--limit 12 --max-new-tokens 12 --batch-size 4 --device cpu"
SEED = 0


def undisturbed(arguments: list[object], run: Path) -> Path:
    """The same command in this process, which has torch loaded, and like the others on one thread."""
    heed_interrupts()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert emeval([*map(str, arguments), "--out", str(run), "--quiet"]) == 0
    finally:
        torch.set_num_threads(threads)
    return run


@pytest.fixture(scope="module")
def trained(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undisturbed(train(tiny_checkpoint), tmp_path_factory.mktemp("undisturbed") / "train")


def train(model: Path) -> list[object]:
    return ["train", "--model", model, *TRAIN.split()]


def check(outcome: Outcome, kills: int) -> None:
    improper = [(str(e.kill), e.code, e.err) for e in outcome.ended if not e.proper]
    differing = [name for name, same in outcome.equal.items() if not same]
    assert outcome.good, (differing, improper, outcome.difference)
    assert [e.hit for e in outcome.ended] == [True] * kills + [False]


def test_training_killed_in_every_save_ends_the_same(tiny_checkpoint: Path, tmp_path: Path, trained: Path) -> None:
    kills = [
        Kill(SIGINT, "train/checkpoint-4/optimizer.pt"),  # a resume point half written
        Kill(SIGKILL, "train/.adapter.part/adapter_model.safetensors"),  # the model half written
        Kill(SIGKILL, "manifest.json", holds='"finished"'),  # all said, the resume points not yet gone
    ]
    check(kill_and_resume(train(tiny_checkpoint), tmp_path / "run", kills, trained), len(kills))


def test_scoring_killed_while_it_asks_and_judges_ends_the_same(tmp_path: Path, trained: Path) -> None:
    command = ["score", "--model", trained, *SCORE.split()]
    whole = undisturbed(command, tmp_path / "undisturbed")
    kills = [
        Kill(SIGKILL, "completions.jsonl", lines=4 * random.Random(SEED).randint(1, 4), tear=True),
        Kill(SIGINT, "completions.jsonl", lines=20),
        Kill(SIGKILL, "judgements.jsonl", lines=1, tear=True),
    ]
    check(kill_and_resume(command, tmp_path / "run", kills, whole), len(kills))
