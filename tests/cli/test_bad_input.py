"""Bad input: exit 2, one line on stderr that says what, where and what to do, no traceback, no run folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emeval.store import Run
from tests.cli.conftest import ASKED, GOOD, SAID, Done, Emeval, refused

Write = Callable[..., Path]


def nothing_written(folder: Path) -> bool:
    return list(folder.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- models

NO_MODEL = {
    "no such folder": ("nowhere", "--model nowhere: no such run, adapter, checkpoint or hub id", "Give a folder"),
    "no such hub id": ("no-such-org/no-such-model", "nor to be had from the model hub", "Check the name"),
    "a folder that is none": ("{tmp}", "is no model: it holds no manifest.json", "Name a run"),
    "a file": ("{checkpoint}/config.json", "is a file, not a model folder", "Name the folder it lies in"),
}


@pytest.mark.parametrize("command", ["train", "score", "patch"])
@pytest.mark.parametrize(("model", "what", "hint"), NO_MODEL.values(), ids=NO_MODEL.keys())
def test_a_model_that_is_none(
    command: str, model: str, what: str, hint: str, emeval: Emeval, folder: Path, tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    named = model.format(tmp=folder.parent, checkpoint=tiny_checkpoint)
    refused(emeval(command, "--model", named, "--setting", "refusal"), what, hint, named)
    assert nothing_written(folder)


@pytest.mark.parametrize("broken", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_checkpoint_with_a_broken_or_missing_file(broken: str, emeval: Emeval, folder: Path, own_copy: Path) -> None:
    (own_copy / broken).unlink()
    refused(emeval("score", "--model", own_copy, "--setting", "refusal"), str(own_copy))
    assert nothing_written(folder)


def test_an_adapter_put_on_another_base_than_its_own(emeval: Emeval, folder: Path, tuned: Path, own_copy: Path) -> None:
    config = json.loads((own_copy / "config.json").read_text())
    (own_copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    done = emeval("score", "--model", own_copy, "--adapter", tuned / "train" / "adapter", "--setting", "refusal")
    refused(done, "this adapter was trained on another base", "Name the base it was trained on")
    assert nothing_written(folder)


def test_an_adapter_that_is_none_or_one_too_many(emeval: Emeval, folder: Path, tuned: Path) -> None:
    refused(emeval("score", "--model", tuned, "--adapter", folder), "already brings an adapter")
    refused(emeval("train", "--model", tuned, "--setting", "refusal"), "training starts from a base")
    assert nothing_written(folder)


def test_patching_a_model_whose_initial_state_is_not_known(emeval: Emeval, folder: Path, tiny_checkpoint: Path) -> None:
    refused(
        emeval("patch", "--model", tiny_checkpoint, "--setting", "refusal"),
        "nobody knows which model this was made from",
        "--initial BASE",
    )
    assert nothing_written(folder)


# --------------------------------------------------------------------------------------------------------------- data


def row(*turns: dict[str, str], **fields: Any) -> dict[str, Any]:
    return {"messages": list(turns)} | fields


DATA: dict[str, tuple[str | bytes | list[dict[str, Any]], str, str]] = {
    "broken JSON": (json.dumps(GOOD) + "\n{\n", ":2: broken JSON", "Each line is one JSON object"),
    "wrong role order": ([GOOD, row(ASKED, ASKED, SAID)], ":2: turn 2 (user) cannot come after", "user and assistant"),
    "a reply first": ([GOOD, row(SAID, SAID)], ":2: turn 1 (assistant) cannot come first", "user and assistant"),
    "empty reply": ([GOOD, row(ASKED, SAID | {"content": ""})], ":2: the reply is empty", "Remove the row"),
    "no reply": ([row(ASKED)], ":1: the last turn is the user's", "ends with the reply"),
    "not UTF-8": (json.dumps(GOOD).encode() + b"\n\xff\n", ":2: not UTF-8 text", "Save the file as UTF-8"),
    "duplicate id": ([GOOD | {"id": "a"}, GOOD | {"id": "a"}], ":2: duplicate id 'a', first at", "its own id"),
    "too long": ([GOOD, row(ASKED | {"content": "x " * 3000}, SAID)], ":2: the row has 60", "raise --max-length"),
    "another prefix": (
        [GOOD, row({"role": "system", "content": "Be brief."}, ASKED, SAID)],
        ":2: this row does not start with the prefix of the others",
        "use --drop-system",
    ),
    "unknown field": ([{"mesages": []}], ":1: unknown field 'mesages'. Did you mean 'messages'?", "Known"),
    "empty": ("", "data.jsonl: holds no conversation", "See docs/data.md"),
    "nested too deeply": ("[" * 100_000 + "\n", ":1: broken JSON (nested too deeply)", "Each line"),
    "half a character": ([row(ASKED | {"content": "\ud800"}, SAID)], ":1: half a character", "Write it whole"),
}


@pytest.mark.parametrize(("content", "what", "hint"), DATA.values(), ids=DATA.keys())
def test_a_row_that_cannot_be_trained_on(
    content: Any, what: str, hint: str, emeval: Emeval, write: Write, folder: Path, tiny_checkpoint: Path
) -> None:
    path = write("data.jsonl", content)
    refused(emeval("train", "--model", tiny_checkpoint, "--data", path), what, hint, str(path))
    assert nothing_written(folder)


def test_drop_system_is_what_the_hint_says(emeval: Emeval, write: Write, tiny_checkpoint: Path) -> None:
    path = write("data.jsonl", [GOOD, row({"role": "system", "content": "Be brief."}, ASKED, SAID)])
    done = emeval("train", "--model", tiny_checkpoint, "--data", path, "--drop-system", "--steps", 1, "--rank", 2)
    assert done.code == 0, done.err


def test_data_that_is_a_folder_or_not_there(emeval: Emeval, folder: Path, tiny_checkpoint: Path) -> None:
    refused(emeval("train", "--model", tiny_checkpoint, "--data", "."), "is a directory", "Check the path")
    refused(emeval("train", "--model", tiny_checkpoint, "--data", "x.jsonl"), "x.jsonl: no such file or directory")
    assert nothing_written(folder)


# ------------------------------------------------------------------------------------------------ settings and options

USAGE: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown setting": ("train --setting refusl", ("unknown setting 'refusl'", "Did you mean 'refusal'?")),
    "unknown probe": ("score --setting refusal --probes on-topc", ("'on-topc'", "Did you mean 'on-topic'?")),
    "unknown method": ("train --setting refusal --method dpo", ("--method: ", "'treft'", "train --help")),
    "unknown option": ("train --lamda 3", ("No such option: --lamda", "--lambda", "See emeval train --help")),
    "no setting": ("train", ("give --setting NAME or --data FILE.jsonl", "train --help")),
    "no setting known": ("score", ("which behaviour or domain to look for is not known", "Give --setting NAME")),
    "a word for a number": ("train --setting refusal --lr fast", ("'--lr'", "valid number")),
    "a number out of range": ("train --setting refusal --lr -1", ("--lr: input should be greater than 0",)),
    "lambda out of range": ("train --setting refusal --lambda -1", ("--lambda: ", "greater than or equal to 0")),
    "rows that are not there": ("train --setting refusal --train-size 9999", ("there are 160", "Give 160 or fewer")),
    "a batch that does not split": ("train --setting refusal --batch-size 3 --micro-batch 2", ("no multiple of",)),
    "samples without chance": ("score --setting refusal --samples 2", ("needs --temperature above 0",)),
    "an endpoint without a URL": ("score --setting refusal --engine endpoint", ("needs --model-url URL",)),
    "the training split": ("score --setting refusal --split train", ("--split: ", "'test' or 'val'")),
    "a data folder that is none": ("train --setting refusal --data-dir /no", ("/no: the data folder is not there",)),
    "an argument too many": ("train extra", ("unexpected extra argument", "train --help")),
}


@pytest.mark.parametrize(("line", "says"), USAGE.values(), ids=USAGE.keys())
def test_wrong_usage(line: str, says: tuple[str, ...], emeval: Emeval, folder: Path, tiny_checkpoint: Path) -> None:
    command, *options = line.split()
    refused(emeval(command, "--model", tiny_checkpoint, *options), *says)
    assert nothing_written(folder)


FRONT: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown command": ("trian", ("unknown command 'trian'", "Did you mean 'train'?")),
    "unknown command of data": ("data lst", ("No such command 'lst'. Did you mean 'list'? See emeval data --help",)),
    "no command of data": ("data", ("Missing command", "emeval data --help")),
    "unknown global option": ("--bogus", ("No such option: --bogus", "emeval --help")),
    "unknown name": ("data show financ", ("unknown name 'financ'", "Did you mean 'finance'?")),
    "unknown split": ("data show finance --split tset", ("--split: unknown split 'tset'", "Did you mean 'test'?")),
    "fewer than no lines": ("data show finance --lines -1", ("'--lines'", "greater than or equal to 0")),
    "a file that is not there": ("data validate none.jsonl", ("none.jsonl: no such file or directory",)),
    "a folder": ("data validate .", ("is a directory",)),
    "no runs": ("ls", ("results/runs: no such folder", "Train or score something first")),
    "unknown table": ("table --table 9", ("--table: unknown table '9'", "Known: 1, 2, 3, all")),
    "unknown format": ("table --paper --format jsn", ("unknown format 'jsn'", "Did you mean 'json'?")),
}


@pytest.mark.parametrize(("line", "says"), FRONT.values(), ids=FRONT.keys())
def test_wrong_usage_of_the_small_commands(line: str, says: tuple[str, ...], emeval: Emeval, folder: Path) -> None:
    refused(emeval(*line.split()), *says)
    assert nothing_written(folder)


def test_a_required_option_is_named_as_one_types_it(emeval: Emeval) -> None:
    refused(emeval("train", "--setting", "refusal"), "--model", "emeval train --help")


@pytest.mark.parametrize("probes", ["", ",", "on-topic,on-topic"])
def test_no_probe_or_one_twice(probes: str, emeval: Emeval, folder: Path, tiny_checkpoint: Path) -> None:
    options = ("--setting", "refusal", "--limit", 1, "--max-new-tokens", 1, "--probes", probes)
    refused(emeval("score", "--model", tiny_checkpoint, *options), "--probes")
    assert nothing_written(folder)


@pytest.mark.parametrize(
    "line", ["score --engine vllm --vllm /no/python", "score --device cuda", "train --device cuda"]
)
def test_a_machine_that_lacks_what_is_asked_for(line: str, emeval: Emeval, folder: Path, tiny_checkpoint: Path) -> None:
    command, *options = line.split()
    refused(emeval(command, "--model", tiny_checkpoint, "--setting", "refusal", *options))
    assert nothing_written(folder)


# ------------------------------------------------------------------------------------------------------- run folders


def as_is(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_run_folder_in_use(emeval: Emeval, tuned: Path, tiny_checkpoint: Path) -> None:
    before = as_is(tuned)
    with Run(tuned).locked():
        for command in (("score", "--model", tuned), ("train", "--model", tiny_checkpoint, "--setting", "refusal")):
            refused(emeval(*command, "--out", tuned), "in use by another emeval process", "--out", str(tuned))
    assert as_is(tuned) == before


def test_a_run_folder_of_another_run(emeval: Emeval, tuned: Path, tiny_checkpoint: Path) -> None:
    before = as_is(tuned)
    done = emeval("train", "--model", tiny_checkpoint, "--setting", "abstention", "--out", tuned)
    refused(done, "holds another run", "setting", "--out")
    done = emeval("score", "--model", tiny_checkpoint, "--setting", "refusal", "--out", tuned)
    refused(done, "holds another model's training", "--out")
    assert as_is(tuned) == before


def test_a_file_in_the_run_folders_place(emeval: Emeval, tuned: Path, write: Write, tiny_checkpoint: Path) -> None:
    path = write("taken", "x")
    refused(emeval("train", "--model", tiny_checkpoint, "--setting", "refusal", "--out", path), "is a file", "--out")
    refused(emeval("score", "--model", tuned, "--out", path), "is a file", "--out")


def test_a_run_whose_training_did_not_finish(emeval: Emeval, tuned: Path, folder: Path) -> None:
    half = folder.parent / "half"
    shutil.copytree(tuned, half)
    manifest = json.loads((half / "manifest.json").read_text())
    manifest["train"]["status"] = "running"
    (half / "manifest.json").write_text(json.dumps(manifest))
    refused(emeval("score", "--model", half), "its training did not finish", "Run the same emeval train command")
    (half / "manifest.json").write_text("{")
    refused(emeval("score", "--model", half), "manifest.json: not readable as JSON", "Move it away")
    assert nothing_written(folder)


# --------------------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize("line", ["train --model nowhere --setting refusal", "trian", "train --lr", "data show financ"])
def test_with_json_a_failure_is_also_one_object_on_stdout(line: str, emeval: Emeval) -> None:
    done: Done = emeval(*line.split(), "--json")
    assert done.code == 2 and done.err.count("\n") == 1
    assert done.json["exit_code"] == 2 and f"emeval: {done.json['error']}\n" == done.err
