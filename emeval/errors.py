"""Every failure emeval means to report: one line for people, an exit code for scripts.

A command never shows a traceback for what a user can mend. It raises one of these; the command line prints
`what`, `where` and `hint` on one line of standard error and leaves with `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EmevalError(Exception):
    """Base of all reported failures.

    Args:
        what: What is wrong, as a full clause without a final stop.
        where: File, `file:line`, option or run folder it was found in.
        hint: What to do next.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what = what
        self.where = where
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}. {self.hint}." if self.hint else f"{head}."


class InputError(EmevalError):
    """Wrong usage or bad input: nothing was written."""

    exit_code = 2


class IncompleteError(EmevalError):
    """The command finished, but part of the result is missing."""

    exit_code = 3


def unknown(kind: str, name: str, known: Iterable[str], *, where: str | None = None) -> InputError:
    """The error for a name that is not among `known`, with the nearest names as a hint."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"Did you mean '{near[0]}'? Known: {', '.join(names)}" if near else f"Known: {', '.join(names)}"
    return InputError(f"unknown {kind} '{name}'", where=where, hint=hint)
