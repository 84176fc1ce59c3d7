"""Downloads of published sets: from the place the registry names, kept only if it is the file that is pinned."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

from emeval.data.public.registry import Entry, checked_sha256, known_set
from emeval.data.public.source import MAX_BYTES
from emeval.errors import EmevalError, InputError
from emeval.store import cache_dir, reported, sha256_file

TIMEOUT = 60.0
"""Seconds without a byte after which a download is given up."""

_HUB = "https://huggingface.co/datasets"
_CHUNK = 1 << 20


def fetch(name: str, sha256: str | None = None) -> Path:
    """The file of a published set, from the cache or downloaded and verified.

    Args:
        name: A name in `datasets/public.yaml`.
        sha256: What the file must be, for a set that the registry does not pin.

    Raises:
        InputError: For an unknown set, one without an address, or one without a sha256.
        EmevalError: If it cannot be downloaded, or is another file than the one pinned; nothing is kept then.
    """
    entry = known_set(name)
    pinned = _pinned(name, entry, sha256)
    address = entry.url or entry.file
    if address is None:
        hint = f"Get it by hand from {entry.homepage}, then: emeval data import {name} --from FILE"
        raise InputError(f"'{name}' has no address to download from", hint=hint)
    target = cache_dir() / "public" / name / PurePosixPath(address).name
    if target.is_file() and sha256_file(target) == pinned:
        return target
    with reported(target, "EMEVAL_CACHE_DIR"):
        target.parent.mkdir(parents=True, exist_ok=True)
        fd, part = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        try:
            with os.fdopen(fd, "wb") as f:
                found = _download(name, entry, f.write)
                f.flush()
                os.fsync(f.fileno())
            if found != pinned:
                what = f"the download is not the file that is pinned: its sha256 is {found}, not {pinned}"
                raise EmevalError(
                    what, where=name, hint="Nothing was kept; see whether a newer emeval knows the new one"
                )
            Path(part).replace(target)
        finally:
            Path(part).unlink(missing_ok=True)
    return target


def _pinned(name: str, entry: Entry, given: str | None) -> str:
    wanted = checked_sha256(given, "--sha256") if given else None
    if entry.sha256 is None and wanted is None:
        hint = f"Look at {entry.homepage}, and give the sha256 of the file you trust with --sha256"
        raise InputError(f"'{name}' is unpinned: nobody has verified its file", hint=hint)
    if entry.sha256 and wanted and entry.sha256 != wanted:
        hint = f"Leave it out: the registry has {entry.sha256}"
        raise InputError(f"'{name}' is pinned to another file", where="--sha256", hint=hint)
    return entry.sha256 or wanted or ""


def _download(name: str, entry: Entry, write: Callable[[bytes], int]) -> str:
    """Hands the bytes to `write`; their sha256."""
    digest, size = hashlib.sha256(), 0
    for chunk in _hub(name, entry) if entry.hub and _has_hub_client() else _web(name, _url(entry)):
        size += len(chunk)
        if size > MAX_BYTES:
            raise EmevalError(f"larger than {MAX_BYTES >> 20} MiB", where=name, hint="Download it by hand")
        digest.update(chunk)
        write(chunk)
    return digest.hexdigest()


def _url(entry: Entry) -> str:
    return entry.url or f"{_HUB}/{entry.hub}/resolve/{entry.revision or 'main'}/{entry.file}"


def _web(name: str, url: str) -> Iterator[bytes]:
    request = urllib.request.Request(url, headers={"User-Agent": "emeval"})  # noqa: S310 - https, the registry sees to it
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
            while chunk := answer.read(_CHUNK):
                yield chunk
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise _unreachable(name, url, e) from e


def _hub(name: str, entry: Entry) -> Iterator[bytes]:
    from huggingface_hub import hf_hub_download

    assert entry.hub and entry.file
    try:
        path = hf_hub_download(entry.hub, entry.file, repo_type="dataset", revision=entry.revision)
    except Exception as e:  # the hub client raises a dozen kinds; all of them mean: not to be had
        raise _unreachable(name, _url(entry), e) from e
    with Path(path).open("rb") as f:
        while chunk := f.read(_CHUNK):
            yield chunk


def _has_hub_client() -> bool:
    try:
        version("huggingface_hub")
    except PackageNotFoundError:
        return False
    return True


def _unreachable(name: str, url: str, e: Exception) -> EmevalError:
    reason = (
        f"HTTP {e.code}" if isinstance(e, urllib.error.HTTPError) else getattr(e, "reason", None) or type(e).__name__
    )
    return EmevalError(
        f"cannot be downloaded ({reason})",
        where=url,
        hint=f"Check the network, or get it by hand and run: emeval data import {name} --from FILE",
    )
