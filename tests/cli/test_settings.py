"""Where a setting comes from: flag > environment > YAML > default. And how a bad value is traced to its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emeval.config import ScoreConfig, TrainConfig
from tests.cli.conftest import Emeval, refused

Write = Callable[..., Path]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, emeval: Emeval) -> Callable[..., TrainConfig]:
    """The settings that `emeval train` resolves: training itself is put aside."""
    return resolved(monkeypatch, emeval, "train", "emeval.train.run.train")


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch, emeval: Emeval) -> Callable[..., ScoreConfig]:
    return resolved(monkeypatch, emeval, "score", "emeval.pipeline.score")


class Seen(Exception):  # noqa: N818 - no error
    """Carries the settings out of the command."""


def resolved(monkeypatch: pytest.MonkeyPatch, emeval: Emeval, command: str, stage: str) -> Callable[..., Any]:
    def stop(config: object, *_: object, **__: object) -> None:
        raise Seen(config)

    monkeypatch.setattr(stage, stop)

    def call(*arguments: object) -> Any:
        with pytest.raises(Seen) as e:
            emeval(command, "--model", "m", "--setting", "refusal", *arguments)
        return e.value.args[0]

    return call


def test_flag_beats_environment_beats_yaml_beats_default(
    train: Callable[..., TrainConfig], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write("c.yaml", "train:\n  lr: 1e-3\n  rank: 3\n  seed: 3\n")
    assert train().lr == 1e-5
    assert train("--config", file).lr == 1e-3
    monkeypatch.setenv("EMEVAL_LR", "1e-2")
    monkeypatch.setenv("EMEVAL_RANK", "5")
    found = train("--config", file, "--lr", "0.5")
    assert (found.lr, found.rank, found.seed, found.batch_size) == (0.5, 5, 3, 16)


def test_a_flag_may_set_a_value_back_to_its_default(
    train: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMEVAL_RANK", "5")
    assert train("--rank", 8).rank == 8


def test_a_section_is_read_by_its_own_command_and_names_may_be_dashed(
    train: Callable[..., TrainConfig], score: Callable[..., ScoreConfig], write: Write
) -> None:
    file = write("c.yaml", "train: {batch-size: 4, micro_batch: 2, lambda: 30}\nscore: {batch_size: 7}\n")
    found = train("--config", file)
    assert (found.batch_size, found.micro_batch, found.lambda_) == (4, 2, 30.0)
    assert score("--config", file).batch_size == 7


@pytest.mark.parametrize("text", ["score: {probes: [on-topic]}", "score: {probes: on-topic}"])
def test_probes_in_yaml_are_a_list_or_words_between_commas(
    text: str, score: Callable[..., ScoreConfig], write: Write
) -> None:
    assert score("--config", write("c.yaml", text)).probes == ("on-topic",)


def test_probes_in_the_environment_are_words_between_commas(
    score: Callable[..., ScoreConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMEVAL_PROBES", "off-topic, on-topic")
    assert score().probes == ("off-topic", "on-topic")
    assert score("--probes", "on-topic").probes == ("on-topic",)


def test_lambda_in_the_environment_is_emeval_lambda(
    train: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMBDA", "7")
    assert train().lambda_ == 10.0
    monkeypatch.setenv("EMEVAL_LAMBDA", "30")
    assert train().lambda_ == 30.0
    assert train("--lambda", 5).lambda_ == 5.0


def test_alpha_is_twice_the_rank_unless_given(train: Callable[..., TrainConfig]) -> None:
    assert train().alpha == 16.0
    assert train("--rank", 32).alpha == 64.0
    assert train("--rank", 32, "--alpha", 16).alpha == 16.0


# ------------------------------------------------------------------------------------------------- bad values, placed

COMMAND = ("train", "--model", "m", "--setting", "refusal")


@pytest.mark.parametrize("value", ["fast", "-1", ""])
def test_a_bad_value_from_the_environment_is_named_by_its_variable(
    value: str, emeval: Emeval, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMEVAL_LR", value)
    refused(emeval(*COMMAND), "EMEVAL_LR: input should be", "emeval train --help")
    assert not list(folder.iterdir())


def test_a_bad_value_from_yaml_is_named_by_file_and_key(emeval: Emeval, write: Write) -> None:
    file = write("c.yaml", "train: {lr: fast}")
    refused(emeval(*COMMAND, "--config", file), f"{file}: lr: input should be a valid number")


def test_the_place_that_won_is_the_place_that_is_named(
    emeval: Emeval, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write("c.yaml", "train: {lr: -1}")
    monkeypatch.setenv("EMEVAL_LR", "-2")
    refused(emeval(*COMMAND, "--config", file, "--lr", "-3"), "emeval: --lr: ")
    refused(emeval(*COMMAND, "--config", file), "emeval: EMEVAL_LR: ")
    monkeypatch.delenv("EMEVAL_LR")
    refused(emeval(*COMMAND, "--config", file), f"emeval: {file}: lr: ")


def test_a_bad_lambda_in_yaml_is_named_as_it_is_written(emeval: Emeval, write: Write) -> None:
    file = write("c.yaml", "train: {lambda: -1}")
    refused(emeval(*COMMAND, "--config", file), f"{file}: lambda: ")


YAML = {
    "unknown option": ("train: {lrr: 1}", "c.yaml: unknown option 'lrr'", "Did you mean 'lr'?"),
    "unknown section": ("trian: {lr: 1}", "c.yaml: unknown section 'trian'", "Did you mean 'train'?"),
    "no mapping": ("train: [lr]", "c.yaml: 'train' is no mapping", "option: value"),
    "broken": ("train: {lr: 1", "broken YAML", "Check indentation"),
    "empty": ("", "c.yaml: holds no YAML mapping", "name: value"),
    "not UTF-8": (b"train: caf\xe9", "c.yaml:1: not UTF-8 text", "Save the file as UTF-8"),
}


@pytest.mark.parametrize(("text", "what", "hint"), YAML.values(), ids=YAML.keys())
def test_a_broken_settings_file(text: str | bytes, what: str, hint: str, emeval: Emeval, write: Write) -> None:
    refused(emeval(*COMMAND, "--config", write("c.yaml", text)), what, hint)


def test_a_settings_file_that_is_not_there(emeval: Emeval) -> None:
    refused(emeval(*COMMAND, "--config", "none.yaml"), "none.yaml: no such file or directory", "Check the path")


def test_a_data_folder_from_the_environment_is_used_and_checked(
    emeval: Emeval, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domains = tmp_path / "own" / "datasets" / "domains"
    domains.mkdir(parents=True)
    (domains / "lamps.jsonl").write_text('{"id": "a", "split": "train", "question": "Which lamp is on?"}\n')
    monkeypatch.setenv("EMEVAL_DATA_DIR", str(tmp_path / "own"))
    assert "lamps" in emeval("data", "list").out
    monkeypatch.setenv("EMEVAL_DATA_DIR", str(tmp_path / "none"))
    for command in (COMMAND, ("data", "list")):
        refused(emeval(*command), f"{tmp_path}/none: the data folder is not there")
