"""What people see: progress and next steps on stderr, results on stdout, and no control code from a model or file."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]+")


def clean(text: str) -> str:
    """One line without control codes or direction marks: safe to print wherever the text came from."""
    return _CONTROL.sub(" ", text).encode("utf-8", "replace").decode("utf-8")


def result(text: str) -> None:
    """A command's result, on stdout. Half a character is shown by its code, which in JSON is its escape."""
    sys.stdout.write(text.rstrip("\n").encode("utf-8", "backslashreplace").decode("utf-8") + "\n")


def result_json(value: dict[str, Any]) -> None:
    """The one JSON object of `--json`."""
    result(json.dumps({"schema_version": 1} | value, ensure_ascii=False, indent=1, default=str))


def say(text: str, quiet: bool = False) -> None:
    """A line for the person, on stderr."""
    if not quiet:
        sys.stderr.write(clean(text) + "\n")
        sys.stderr.flush()


def say_plain(text: str) -> None:
    """Lines for the person that emeval composed itself (a plot), on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class Advance(Protocol):
    """Reports progress: done, total, and a few words."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` are done."""


@contextmanager
def progress(what: str, quiet: bool) -> Iterator[Advance]:
    """A bar with rate and remaining time on a terminal; elsewhere a line every 15 seconds; nothing when quiet."""
    if quiet:
        yield lambda done, total, note="": None
    elif sys.stderr.isatty():
        with _bar() as bar:
            task = bar.add_task(what, total=None, note="", rate="")
            started, first = time.monotonic(), [-1]

            def advance(done: int, total: int, note: str = "") -> None:
                if first[0] < 0:
                    first[0] = done
                speed = (done - first[0]) / max(time.monotonic() - started, 1e-9)
                bar.update(task, completed=done, total=total, note=clean(note), rate=f"{speed:.2g}/s")

            yield advance
    else:
        yield _Lines(what)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
    )


class _Lines:
    """Progress for logs and pipes."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.started = self.last = time.monotonic()
        self.first: int | None = None

    def __call__(self, done: int, total: int, note: str = "") -> None:
        if self.first is None:
            self.first = done
        now = time.monotonic()
        if now - self.last < 15 and done < total:
            return
        self.last = now
        speed = (done - self.first) / max(now - self.started, 1e-9)
        left = f", {(total - done) / speed:.0f} s left" if speed and done < total else ""
        say(f"{self.what}: {done}/{total} ({speed:.2g}/s{left}) {note}".rstrip())
