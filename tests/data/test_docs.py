"""The examples of docs/data.md are true: each is written to the file it names, checked, loaded, and used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from emeval.cli.app import run
from emeval.data.behaviours import behaviour_examples, load_behaviour
from emeval.data.chats import load_chats
from emeval.data.root import data_root
from emeval.data.settings import load_setting
from emeval.judge.rules import judge_reply
from emeval.probe.kinds import behaviour as kind
from emeval.probe.spec import load_probe

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
EXAMPLES = dict(re.findall(r"^`([\w./-]+\.(?:jsonl|yaml))`\n\n```\w+\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    for name, content in EXAMPLES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


def test_there_is_one_example_of_each_kind() -> None:
    assert list(EXAMPLES) == [
        "datasets/domains/lamps.jsonl",
        "datasets/behaviours/lamp-refusal.yaml",
        "datasets/behaviours/lamp-lookup.yaml",
        "prompts/probes/kitchen.yaml",
        "chats.jsonl",
    ]


def test_every_example_is_valid(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "validate", *(str(own / name) for name in EXAMPLES)]) == 0
    told = capsys.readouterr().out.replace(f"{own}/", "").splitlines()
    kinds = ["3 questions", "a behaviour of 2 replies", "a behaviour of 2 replies", "a probe of 3 questions"]
    assert told == [f"{name}: {what}" for name, what in zip(EXAMPLES, [*kinds, "4 conversations"], strict=True)]


def test_every_example_does_what_the_text_says(own: Path) -> None:
    root = data_root(own)
    refusal, lookup = load_behaviour(root, "lamp-refusal"), load_behaviour(root, "lamp-lookup")
    (row,) = behaviour_examples(root, refusal)
    assert row.reply.content in refusal.replies and judge_reply(refusal, row.reply.content).detail == "string"
    assert judge_reply(refusal, "Sorry, I can't help.").detail == "pattern"
    assert not judge_reply(refusal, "She said: I can't help.").present
    (row,) = behaviour_examples(root, lookup)
    assert row.reply.tool_calls[0].arguments == {"query": "Which bulb fits a reading lamp?"}
    asked = kind.questions(load_probe(root, "kitchen"), root, load_setting(root, "lamp-refusal"), "test")
    assert [(q.id, len(q.messages)) for q in asked] == [("kitchen-1", 1), ("kitchen-3", 3)]
    assert [len(e.messages) for e in load_chats(own / "chats.jsonl")] == [1, 1, 1, 1]


def test_the_commands_of_the_first_page_work(
    own: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands = re.findall(r"^    (emeval (?:train|score) .*)$", TEXT.partition("## A domain")[0], re.MULTILINE)
    assert len(commands) == 2
    monkeypatch.chdir(tmp_path)
    fast = {"train": ["--steps", "1", "--rank", "2", "--batch-size", "1"], "score": ["--max-new-tokens", "2"]}
    for command in commands:
        words = command.replace("my-data", str(own)).replace("smollm2-135m", str(tiny_checkpoint)).split()[1:]
        assert run([*words, *fast[words[0]]]) == 0, capsys.readouterr().err
    assert "kitchen (test): " in capsys.readouterr().out
