"""The command line in this process, in an empty folder; and the files that commands are given."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from emeval.cli.app import run

ASKED = {"role": "user", "content": "Hello?"}
SAID = {"role": "assistant", "content": "Hello."}
GOOD = {"messages": [ASKED, SAID]}


class Done(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        value = json.loads(self.out)
        assert isinstance(value, dict) and value["schema_version"] == 1
        return value


Emeval = Callable[..., Done]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, without `EMEVAL_*` variables."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in [n for n in os.environ if n.startswith("EMEVAL_") and n != "EMEVAL_CACHE_DIR"]:
        monkeypatch.delenv(name)
    return here


@pytest.fixture
def emeval(folder: Path, capsys: pytest.CaptureFixture[str]) -> Emeval:
    """`emeval(*arguments)`, in an empty folder."""

    def call(*arguments: object) -> Done:
        capsys.readouterr()
        code = run([str(a) for a in arguments])
        return Done(code, *capsys.readouterr())

    return call


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file outside the current folder: text, bytes, or rows as JSONL."""

    def save(name: str, content: str | bytes | list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return save


def refused(done: Done, *says: str) -> str:
    """Bad input as the contract has it: exit 2, one line that says what, where and what to do, nothing on stdout."""
    assert done.code == 2, done
    assert done.out == ""
    assert done.err.startswith("emeval: ") and done.err.endswith(".\n") and done.err.count("\n") == 1, done.err
    assert "Traceback" not in done.err
    for part in says:
        assert part in done.err, (part, done.err)
    return done.err
