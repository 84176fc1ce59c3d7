"""The run folder on disks that are full or refuse, and with two processes at once."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emeval.errors import EmevalError, InputError
from emeval.store import Jsonl, Run, write_json
from emeval.types import Completion
from tests.test_store import REPOSITORY, completion, file


@pytest.fixture
def tiny_disk(mounted: Callable[[str], Path]) -> Path:
    """A file system of 64 KiB."""
    return mounted("64k")


def check_full(out: Jsonl[Completion], size: int) -> None:
    written = 0
    with pytest.raises(EmevalError, match="no space left on device") as e:
        for written in range(1000):
            out.append(completion(written, "x" * size))
    assert e.value.exit_code == 1 and "Free some space" in str(e.value) and str(out.path) in str(e.value)
    out.close()
    assert out.path.read_bytes().endswith(b"\n"), "no half line stays"
    assert [r.key for r in Jsonl(out.path, Completion).read()] == [f"k{n}" for n in range(written)] != []


def test_a_full_disk_is_told_and_what_was_written_stays(tiny_disk: Path) -> None:
    check_full(Jsonl(tiny_disk / "completions.jsonl", Completion), 10_000)
    with pytest.raises(EmevalError, match="no space left on device"):
        write_json(tiny_disk / "scores.json", {"a": "x" * 100_000})
    assert [p.name for p in tiny_disk.iterdir()] == ["completions.jsonl"]


def test_a_disk_that_takes_half_a_line_leaves_whole_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without a mount: a file that writes seven bytes at a time, up to 5000."""
    import io

    class Small(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() > 5000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(bytes(data[:7]))

    monkeypatch.setattr(io, "FileIO", Small)
    check_full(file(tmp_path), 700)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_folder_that_cannot_be_written_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(EmevalError, match="Choose a folder you can write to with --out") as e:
        file(tmp_path).append(completion(1))
    assert str(tmp_path) in str(e.value)
    with pytest.raises(EmevalError, match="Choose a folder you can write to with --out") as e:
        write_json(tmp_path / "r" / "m.json", {})
    assert str(tmp_path) in str(e.value)


def test_a_file_in_a_folders_place(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(EmevalError, match="Choose a folder you can write to with --out"):
        file(tmp_path).append(completion(1))
    with pytest.raises(InputError, match="is a file, not a run folder"), Run(tmp_path / "run").locked():
        pass


# --------------------------------------------------------------------------------------------------------------- lock

HOLD = """
import sys
from pathlib import Path
from emeval.store import Run
with Run(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_holds_a_run_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)],
        env={"PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="in use by another emeval process") as e, run.locked():
            pass
        assert e.value.where == str(run.path)
        holder.kill()
    for _ in range(2):  # the killed one's lock is gone, and so is ours after its block
        with run.locked(), pytest.raises(InputError, match="in use"), Run(run.path).locked():
            pass


def test_the_lock_is_let_go_also_when_the_work_fails(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(ZeroDivisionError), run.locked():
        1 / 0  # noqa: B018
    with run.locked():
        pass


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(EmevalError, match="no locks available"), Run(tmp_path).locked():
        pass
