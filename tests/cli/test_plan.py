"""`emeval train --plan` at the command line: what it prints, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emeval import models
from tests.cli.conftest import GOOD, Emeval, refused
from tests.train.test_forecast import SHORT

Write = Callable[..., Path]
RUN = [part for name, value in SHORT.items() for part in (f"--{name.replace('_', '-')}", value)]


def test_it_tells_the_run_and_writes_nothing(emeval: Emeval, folder: Path, tiny_checkpoint: Path) -> None:
    done = emeval("train", "--model", tiny_checkpoint, *RUN, "--plan")
    assert done.code == 0 and done.err == ""
    for name in ("parameters", "not adapted", "rows", "steps", "tokens", "memory", "of which", "fits"):
        assert f"\n{name} " in done.out
    assert list(folder.iterdir()) == []


def test_one_object_in_json(emeval: Emeval, folder: Path, tiny_checkpoint: Path) -> None:
    plan = emeval("train", "--model", tiny_checkpoint, *RUN, "--plan", "--json", "--full").json["plan"]
    assert plan["parameters"] == plan["trained"] and plan["steps"] == 2
    assert plan["peak_memory_bytes"] == max(sum(plan["peak_memory_parts"].values()), plan["loading_bytes"])
    assert plan["fits"] == {"this machine": True}
    assert list(folder.iterdir()) == []


def test_on_a_gpu_that_is_not_here(emeval: Emeval, folder: Path, tiny_checkpoint: Path) -> None:
    done = emeval("train", "--model", tiny_checkpoint, *RUN, "--device", "cuda", "--processes", 2, "--plan")
    assert done.code == 0 and "GPUs of 24 GB" in done.out and "2 processes" in done.out and "a process at" in done.out


REFUSED: dict[str, list[object]] = {
    "a setting": ["--setting", "refusl"],
    "a value": ["--setting", "refusal", "--rank", "0"],
    "options against each other": ["--setting", "refusal", "--lr", "1e-4", "--retain-share", "0.3"],
    "rows": ["--setting", "refusal", "--max-length", "10"],
    "more rows than there are": ["--setting", "refusal", "--train-size", "9999"],
    "rows that cannot be shared": ["--setting", "refusal", "--batch-size", "4", "--processes", "3"],
    "data": ["--data", "nowhere.jsonl"],
    "a recipe's row": ["--setting", "refusal", "--data", "{data}"],
}


@pytest.mark.parametrize("given", REFUSED.values(), ids=REFUSED.keys())
def test_it_refuses_what_training_refuses(
    given: list[str], emeval: Emeval, folder: Path, tiny_checkpoint: Path, write: Write
) -> None:
    data = write("data.jsonl", [GOOD, {"messages": [GOOD["messages"][0]]}])
    command: list[object] = ["train", "--model", tiny_checkpoint, *(str(part).format(data=data) for part in given)]
    command += ["--device", "cpu"]
    assert refused(emeval(*command, "--plan")) == refused(emeval(*command))
    assert list(folder.iterdir()) == []


def test_a_folder_with_another_run(emeval: Emeval, tuned: Path, tiny_checkpoint: Path) -> None:
    before = sorted(tuned.rglob("*"))
    refused(emeval("train", "--model", tiny_checkpoint, *RUN, "--out", tuned, "--plan"), "holds another run")
    assert sorted(tuned.rglob("*")) == before


def test_of_a_hub_id_no_weights_are_fetched(
    emeval: Emeval, folder: Path, own_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub as hub

    asked: list[list[str]] = []
    for path in models.weight_files(own_copy):
        path.unlink()

    def download(repo: str, *, local_files_only: bool, allow_patterns: list[str], **_: Any) -> str:
        asked.append(allow_patterns)
        if local_files_only:
            raise FileNotFoundError
        return str(shutil.copytree(own_copy, folder.parent / "hub", dirs_exist_ok=True))

    monkeypatch.setattr(hub, "snapshot_download", download)
    plan = emeval("train", "--model", "org/name", *RUN, "--plan", "--json").json["plan"]
    assert plan["model"] == "org/name" and plan["parameters"] > 0
    assert len(asked) == 2 and not any("safetensors" in name and "json" not in name for p in asked for name in p)
    refused(emeval("train", "--model", "org/name", *RUN), "nor to be had from the model hub")


def test_offline_and_not_cached(emeval: Emeval, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(emeval("train", "--model", "no-such-org/no-such", *RUN, "--plan"), "nor to be had from the model hub")
    assert list(folder.iterdir()) == []
