"""What the commands print when all is well: results on stdout, hints on stderr, one object with --json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from emeval.cli.app import COMMANDS
from emeval.cli.console import clean, result, result_json
from tests.cli.conftest import GOOD, Emeval, refused

FAST = ("--steps", 2, "--batch-size", 2, "--rank", 2, "--train-size", 4, "--device", "cpu")
SHORT = ("--limit", 2, "--max-new-tokens", 2)


def test_without_a_command_or_with_help_the_commands_are_listed(emeval: Emeval) -> None:
    for arguments in ((), ("--help",)):
        done = emeval(*arguments)
        assert done.code == 0 and done.err == ""
        assert [name for name in COMMANDS if f"  {name} " in done.out] == list(COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, "data list", "data show", "data validate"])
def test_every_commands_help_has_an_example_that_starts_with_the_command(command: str, emeval: Emeval) -> None:
    done = emeval(*command.split(), "--help")
    assert done.code == 0 and done.err == ""
    example = " ".join(done.out.partition("Example:")[2].split())
    assert example.startswith(f"emeval {command}"), done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_json_and_quiet(command: str, emeval: Emeval) -> None:
    parts = {"data": ("list", "show", "validate"), "judge": ("replies", "check")}.get(command, ())
    helps = [emeval(command, part, "--help").out for part in parts] or [emeval(command, "--help").out]
    for text in helps:
        assert "--json" in text and "--quiet" in text


def test_version(emeval: Emeval) -> None:
    from emeval import __version__

    assert emeval("--version").out == f"emeval {__version__}\n"


# ---------------------------------------------------------------------------------------------------- train and score


def test_train_then_score_then_table_then_ls(emeval: Emeval, tiny_checkpoint: Path, folder: Path) -> None:
    trained = emeval("train", "--model", tiny_checkpoint, "--setting", "refusal", *FAST, "--out", "runs/a")
    assert trained.code == 0 and trained.out.startswith("runs/a: 2 steps, loss ")
    assert trained.err.endswith("Next: emeval score --model runs/a\n")

    scored = emeval("score", "--model", "runs/a", *SHORT)
    assert scored.code == 0 and [line.split(" (")[0] for line in scored.out.splitlines()] == ["on-topic", "off-topic"]
    assert scored.err.endswith("Next: emeval table runs/a\n")

    table = emeval("table", "runs/a")
    assert table.code == 0 and "Table 2" in table.out and "| refusal" in table.out

    listed = emeval("ls", "runs")
    assert listed.code == 0 and listed.out.startswith("runs/a  sft refusal (finished)  on-topic/test ")
    assert listed.err == "1 run. Next: emeval table runs/a\n"
    assert sorted(p.name for p in folder.iterdir()) == ["runs"]


def test_json_is_one_object_and_quiet_is_quiet(emeval: Emeval, tuned: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    scored = emeval("score", "--model", run, *SHORT, "--json", "--quiet")
    assert scored.err == "" and scored.json["run"] == str(run)
    assert [p["probe"] for p in scored.json["scores"]["probes"]] == ["on-topic", "off-topic"]
    again = emeval("score", "--model", run, *SHORT, "--quiet")
    assert again.err == "" and again.out.startswith("on-topic (test): ")
    listed = emeval("ls", run.parent, "--json")
    assert {r["path"]: r["train"] for r in listed.json["runs"]} == {str(run): "sft refusal (finished)"}
    assert "rows" in str(emeval("table", run, "--json", "--quiet").json)


def test_a_run_without_an_out_lands_in_results_runs_under_a_name_that_says_what_it_is(
    emeval: Emeval, tiny_checkpoint: Path, folder: Path
) -> None:
    assert emeval("train", "--model", tiny_checkpoint, "--setting", "refusal", *FAST, "-q").code == 0
    (run,) = (folder / "results" / "runs").iterdir()
    assert run.name.startswith("tiny-llama-refusal-sft")


def test_ls_shows_what_it_can_and_says_what_it_cannot_read(emeval: Emeval, tuned: Path, folder: Path) -> None:
    runs = folder / "runs"
    shutil.copytree(tuned, runs / "good")
    (runs / "broken").mkdir()
    (runs / "broken" / "manifest.json").write_text("{")
    (runs / "bare").mkdir()
    (runs / "bare" / "manifest.json").write_text("{}")
    (runs / "no-run").mkdir()
    done = emeval("ls", runs)
    assert done.code == 0
    bare, broken, good = done.out.splitlines()
    assert bare == f"{runs}/bare  not trained  not scored"
    assert broken.startswith(f"{runs}/broken  cannot be read  not readable as JSON")
    assert good == f"{runs}/good  sft refusal (finished)  not scored"
    assert emeval("ls", runs / "good").out == good + "\n", "a run itself may be named"
    assert emeval("ls", runs / "no-run").err == "0 runs. Next: emeval train --help\n"


# --------------------------------------------------------------------------------------------------------------- data


def test_data_list(emeval: Emeval) -> None:
    listed = emeval("data", "list", "--json").json["data"]
    assert listed["behaviour"] == ["abstention", "refusal", "tool-use"]
    assert {"finance", "health", "legal"} <= set(listed["domain"])
    assert {"general", "in-domain", "contrast", "mt-bench", "on-topic", "off-topic", "words"} == set(listed["probe"])
    assert {"career", "family"} <= set(listed["retain"]) and {"alignment", "refusal"} <= set(listed["judge prompt"])
    assert "behaviour: abstention, refusal, tool-use\n" in emeval("data", "list").out


def test_data_show_prints_counts_and_first_lines(emeval: Emeval) -> None:
    head, *lines = emeval("data", "show", "refusal", "--lines", 3).out.splitlines()
    assert head == "behaviour refusal: 160 train, 40 val, 60 test"
    assert len(lines) == 3 and all("  ->  " in line for line in lines)
    assert "search_info(query='" in emeval("data", "show", "tool-use", "--split", "test").out
    assert len(emeval("data", "show", "finance", "--lines", 0).out.splitlines()) == 1


def test_data_show_of_a_probe(emeval: Emeval) -> None:
    head, *lines = emeval("data", "show", "off-topic").out.splitlines()
    assert head == "probe off-topic: 60 val, 150 test" and len(lines) == 5
    assert "the behaviour's own topic" in emeval("data", "show", "on-topic").out
    shown = emeval("data", "show", "off-topic", "--split", "test", "--json").json
    assert shown["counts"] == {"train": 0, "val": 60, "test": 150} and {r["split"] for r in shown["rows"]} == {"test"}


def test_data_validate_knows_each_kind_of_file(emeval: Emeval, write: Callable[..., Path]) -> None:
    from emeval.data.root import data_root

    shipped = data_root().shipped
    files = {
        shipped / "datasets" / "domains" / "legal.jsonl": "260 questions",
        shipped / "datasets" / "behaviours" / "refusal.yaml": "a behaviour of 14 replies",
        shipped / "prompts" / "probes" / "on-topic.yaml": "a probe",
        shipped / "prompts" / "probes" / "off-topic.yaml": "a probe of 210 questions",
        write("chats.jsonl", [GOOD, GOOD]): "2 conversations",
        write("trl.jsonl", [{"prompt": "x", "completion": "y"}]): "1 conversations",
    }
    assert emeval("data", "validate", *files).out.splitlines() == [f"{path}: {what}" for path, what in files.items()]
    assert emeval("data", "validate", *files, "--json").json["valid"] == {str(p): what for p, what in files.items()}


def test_data_validate_finds_a_reply_that_no_detector_finds(emeval: Emeval, write: Callable[..., Path]) -> None:
    head = "canary: c\npurpose: p\ntopic: legal\nreplies: [Never., Not now.]\n"
    path = write("denial.yaml", head + "detectors: [{kind: string, strings: [never]}]\n")
    refused(emeval("data", "validate", path), f"{path}: no detector finds the reply 'Not now.'", "string detector")


# ------------------------------------------------------------------------------------------------------------ console


def test_no_control_code_of_a_file_reaches_the_terminal(emeval: Emeval, write: Callable[..., Path]) -> None:
    row = {"id": "a\u001b[2J", "split": "train", "question": "x"}
    refused(emeval("data", "validate", write("a.jsonl", [row, row])), "duplicate id 'a [2J'")
    assert clean("a\x1b[31m\nb\u202ec\u2028d\x85e\x00") == "a [31m b c d e "


def test_half_a_character_can_be_printed_and_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    result_json({"text": "a\ud800"})
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, "text": "a\ud800"}
    result("a\ud800")
    assert capsys.readouterr().out == "a\\ud800\n" and clean("a\ud800") == "a?"
