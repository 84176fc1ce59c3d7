"""Fixtures that several rooms of the house share: a checkpoint small enough to train and score in seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of a few thousand weights with a byte-level tokenizer and a ChatML template, as safetensors."""
    from tests.tiny import save_checkpoint

    return save_checkpoint(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def own_copy(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the tiny checkpoint that a test may break."""
    folder = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def tuned(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two SFT steps on the tiny checkpoint, setting refusal. Read it, copy it, do not change it."""
    from emeval.config import TrainConfig
    from emeval.train.run import train

    out = tmp_path_factory.mktemp("runs") / "tiny-sft"
    settings = {"steps": 2, "batch_size": 2, "rank": 2, "train_size": 4, "device": "cpu", "setting": "refusal"}
    return train(TrainConfig.model_validate({"model": str(tiny_checkpoint), "out": out} | settings))


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of a given size ("64k", "2m") of its own; skips where that needs more rights."""
    folder = tmp_path / "disk"

    def mount(size: str) -> Path:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("mounting needs root")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)
