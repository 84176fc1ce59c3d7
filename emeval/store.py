"""The run folder: manifest, append-only JSONL, lock. What is on disk is log, cache and resume point at once.

Rules that make it safe to kill at any moment: a manifest is replaced whole (write aside, fsync, rename); a JSONL file
only grows, a line at a time, and a torn last line is cut off before the next append; one process holds a run's lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from emeval.errors import EmevalError, InputError
from emeval.types import SCHEMA_VERSION

R = TypeVar("R", bound=BaseModel)

_UMASK = os.umask(0)
os.umask(_UMASK)


def sha256_of(*parts: str | bytes) -> str:
    """Hex sha256 over the parts, each with its length, so that no two lists of parts collide."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(str(len(data)).encode() + b":" + data)
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def slug(text: str) -> str:
    """A file name made of `text`: lower-case letters, digits, dots and dashes; never empty, never a path."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:80] or "run"


def cache_dir() -> Path:
    """Where what was downloaded or converted is kept: `EMEVAL_CACHE_DIR`, else `~/.cache/emeval`."""
    return Path(os.environ.get("EMEVAL_CACHE_DIR") or Path.home() / ".cache" / "emeval")


@contextlib.contextmanager
def reported(path: Path, option: str = "--out") -> Iterator[None]:
    """Turns what a disk can do to us (full, read-only, gone) into one line that names the place.

    `option` is how a user names another place.
    """
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "Free some space and run the same command again; what was written is kept"
        elif e.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            hint = f"Choose a folder you can write to with {option}"
        else:
            hint = "Run the same command again once that is mended"
        raise EmevalError((e.strerror or str(e)).lower(), where=str(path), hint=hint) from e


def write_atomic(path: Path, text: str, option: str = "--out") -> None:
    """Replace `path` by `text` whole: a reader, or a run killed here, sees the old content or the new one."""
    with reported(path, option):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as f:
                f.write(text)
                f.flush()
                os.fsync(f.fileno())
            Path(name).chmod(0o666 & ~_UMASK)  # mkstemp makes it private; a manifest is to be shared
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def write_json(path: Path, value: object) -> None:
    """`write_atomic` of indented JSON. Not a number and infinity are errors: a reader would choke on them."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=_plain)
    # Half a character becomes its JSON escape, as in the JSONL files.
    write_atomic(path, text.encode("utf-8", "backslashreplace").decode() + "\n")


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no place in a JSON file")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from `path`. InputError if it is not one, or of a schema this release does not know."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (ValueError, OSError, RecursionError) as e:
        raise InputError(f"not readable as JSON ({e})", where=str(path), hint="Move it away and run again") from e
    if not isinstance(value, dict):
        raise InputError("holds no JSON object", where=str(path), hint="Move it away and run again")
    version = value.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise _other_version(version, str(path))
    return value


def _other_version(version: object, where: str) -> InputError:
    return InputError(
        f"written by another release of emeval: schema_version {version} is not {SCHEMA_VERSION}",
        where=where,
        hint="Read it with that release, or move it away",
    )


class Jsonl(Generic[R]):
    """An append-only file of one record type."""

    def __init__(self, path: Path, record: type[R]) -> None:
        self.path = path
        self.record = record
        self._file: io.FileIO | None = None

    def read(self) -> list[R]:
        """All whole records. A torn last line (no newline) is ignored; a broken line before it is an InputError."""
        if not self.path.exists():
            return []
        with reported(self.path):
            *lines, _torn = self.path.read_bytes().split(b"\n")
        return [self._parse(n, line) for n, line in enumerate(lines, 1) if line.strip()]

    def _parse(self, n: int, line: bytes) -> R:
        try:
            # Not pydantic's own JSON reader: it refuses half a character, which models do write.
            value = json.loads(line, parse_constant=_no_constant)
            version = value.get("schema_version", SCHEMA_VERSION) if isinstance(value, dict) else SCHEMA_VERSION
            if version != SCHEMA_VERSION:
                raise _other_version(version, f"{self.path}:{n}")
            return self.record.model_validate(value)
        except (ValueError, RecursionError) as e:
            reason = e.errors()[0]["msg"] if isinstance(e, ValidationError) else str(e)
            raise InputError(
                f"not a {self.record.__name__.lower()} record ({reason})",
                where=f"{self.path}:{n}",
                hint="Remove the line, or move the file away, and run the same command again",
            ) from e

    def append(self, record: R) -> None:
        """Write one line and hand it to the operating system. A killed process loses nothing that was appended.

        Raises:
            EmevalError: If the disk refuses; the file then ends with its last whole line.
            ValueError: For a record with a float that is not a number; nothing is written.
        """
        text = json.dumps(record.model_dump(mode="json"), ensure_ascii=False, allow_nan=False)
        # "backslashreplace" writes half a character the way JSON escapes it.
        line = text.encode("utf-8", "backslashreplace") + b"\n"
        with reported(self.path):
            if self._file is None:
                self._file = self._open()
            _write_whole(self._file, line)

    def _open(self) -> io.FileIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        f = io.FileIO(self.path, "a+")
        f.seek(0)
        content = f.readall()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            f.truncate(whole)
        return f

    def close(self) -> None:
        """Flush to the disk itself and close."""
        if self._file is not None:
            file, self._file = self._file, None
            with reported(self.path), file:
                os.fsync(file.fileno())


def _write_whole(file: io.FileIO, line: bytes) -> None:
    """A line or nothing: where the disk is full in the middle of it, its start is taken back."""
    before = file.seek(0, os.SEEK_END)
    rest = memoryview(line)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(before)
        raise


class Run:
    """A folder `results/runs/<name>/`.

    It holds `manifest.json`, `train/`, `completions.jsonl`, `judgements.jsonl` and `scores.json`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest_path = path / "manifest.json"
        self.scores_path = path / "scores.json"
        self.train_dir = path / "train"
        self.completions_path = path / "completions.jsonl"
        self.judgements_path = path / "judgements.jsonl"

    @staticmethod
    def is_run(path: Path) -> bool:
        """True for a folder with a manifest."""
        return (path / "manifest.json").is_file()

    def manifest(self) -> dict[str, Any]:
        """The manifest, or a fresh one that is not written yet."""
        if self.manifest_path.exists():
            return read_json(self.manifest_path)
        return {"schema_version": SCHEMA_VERSION, "name": self.path.name, "train": None, "score": None}

    def update_manifest(self, **sections: Any) -> dict[str, Any]:
        """Replace top-level sections and write the manifest whole."""
        manifest = self.manifest() | sections
        write_json(self.manifest_path, manifest)
        return manifest

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; the system lets go of it when the process ends, however it ends.

        Raises:
            InputError: If another process holds it, or a file is in its place.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError("is a file, not a run folder", where=str(self.path), hint="Choose a folder with --out")
        with reported(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            handle = (self.path / ".lock").open("a")
        with handle:
            with reported(self.path):
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as e:
                    raise _in_use(self.path) from e
                self._sweep()
            yield

    def _sweep(self) -> None:
        """Remove what a killed process had begun: `.NAME.part` is a file or folder on its way to becoming NAME."""
        for begun in [*self.path.glob(".*.part"), *self.train_dir.glob(".*.part")]:
            if begun.is_dir():
                shutil.rmtree(begun)
            else:
                begun.unlink()


def _in_use(path: Path) -> InputError:
    return InputError(
        "this run folder is in use by another emeval process",
        where=str(path),
        hint="Wait for it to end, or choose another folder with --out",
    )
