"""A process that runs a command and takes the whole process group with it when the starter goes away.

`Guarded` starts this file as a script (`python -I guard.py COMMAND...`), so it imports nothing but the standard
library. Neither of the usual ways keeps the promise "no server outlives emeval, even under SIGKILL": `atexit` and
signal handlers do not run then, and PR_SET_PDEATHSIG needs a `preexec_fn` (unsafe in a process with threads), fires
when the starting *thread* ends, and reaches only one generation of children, where vLLM has three. Here a parent
stands between: it holds the read end of a pipe whose other end closes with emeval, however emeval ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import IO

GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL."""
_TICK = 0.2
_PR_SET_CHILD_SUBREAPER = 36


class Guarded:
    """A command under guard, in a session and process group of its own.

    Args:
        command: The command line; its standard input is empty.
        env: Its whole environment.
        log: Where its output goes; needs a file descriptor.
    """

    def __init__(self, command: Sequence[str], env: dict[str, str], log: IO[bytes]) -> None:
        self._process = subprocess.Popen(  # noqa: S603  # the caller's own command line, no shell
            [sys.executable, "-I", __file__, *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )

    @property
    def group(self) -> int:
        """The process group's id."""
        return self._process.pid

    def running(self) -> bool:
        """Whether the command still runs."""
        return self._process.poll() is None

    def wait(self) -> int:
        """The command's exit code, once it has ended."""
        return self._process.wait()

    def end(self) -> None:
        """SIGTERM to the whole group, SIGKILL after `GRACE` seconds. Safe to call twice."""
        if self.running():
            _signal_group(self.group, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE + 1)  # the guard itself is due to kill first
        if self.running():
            _signal_group(self.group, signal.SIGKILL)
            self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _adopt_orphans() -> None:
    """Become the reaper of grandchildren (Linux), so that no child left means nothing is left at all."""
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class _Family:
    """The guarded command, its descendants, and what became of them."""

    def __init__(self, command: Sequence[str]) -> None:
        self._first = subprocess.Popen(command, stdin=subprocess.DEVNULL).pid  # noqa: S603
        self.code: int | None = None
        """The command's exit code, None while it runs."""
        self.gone = False
        """Whether every adopted descendant has ended too."""

    def reap(self) -> None:
        """Collect whoever has ended."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._first:
                    self.code = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            self.gone = True


class _Watch:
    """Tells when to stop: SIGTERM came, or the starter is gone."""

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._told = False
        # A handler, not SIG_IGN: an ignored signal would stay ignored in the command.
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self._told = True

    def over(self) -> bool:
        """Whether to stop; waits one tick.

        End-of-file on the pipe tells at once. The parent's id tells where another child of the starter, forked
        without exec, still holds the pipe open.
        """
        readable, _, _ = select.select([0], [], [], _TICK)
        return self._told or bool(readable and not os.read(0, 1)) or os.getppid() != self._parent


def main(command: Sequence[str]) -> int:
    """Run `command` until it ends or is no longer wanted, then end what is left; returns the command's exit code."""
    watch = _Watch()
    _adopt_orphans()
    family = _Family(command)
    while family.code is None and not watch.over():
        family.reap()
    _signal_group(os.getpgrp(), signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while not family.gone and time.monotonic() < deadline:
        family.reap()
        time.sleep(_TICK / 4)
    if not family.gone:
        _signal_group(os.getpgrp(), signal.SIGKILL)  # ends this process too
    return family.code if family.code is not None and family.code >= 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
