"""The vLLM engine: one server process for one model, on this machine, with a key of its own, gone when we are.

The server runs under another interpreter if need be (`--vllm PYTHON`), and under guard (`guard.py`), so that it ends
with this process however that ends: no signal handlers are set here.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from pydantic import SecretStr

from emeval.engine import Pair, Request
from emeval.engine.endpoint import EndpointEngine
from emeval.engine.launch import (
    ADAPTER,
    BASE,
    VllmInfo,
    free_port,
    http_status,
    last_error,
    probe_python,
    server_command,
    server_env,
)
from emeval.errors import EmevalError
from emeval.guard import Guarded
from emeval.models import merge_adapter
from emeval.types import Generated, Sampling

T = TypeVar("T")

__all__ = ["VllmEngine", "VllmInfo", "probe_python"]


class VllmEngine:
    """A model served by vLLM; starts the server, and `close` ends it. A context manager.

    Args:
        model_path: Checkpoint folder.
        adapter: LoRA adapter folder on top of it: served as it is on CUDA, merged into a temporary copy on CPU (where
            adapter decoding is slow).
        python: Interpreter that has vLLM.
        dtype: "auto" is float32 on CPU and bfloat16 on CUDA; else a name vLLM knows.
        log_dir: Gets `vllm.log`, and the merged copy while the engine lives.
        max_model_len: Tokens of prompt and reply together; None takes what the model allows and memory holds.
        gpu_memory_utilization: Share of the GPU's memory to take, 0 to 1.
        startup_timeout: Seconds until the server must answer.
        concurrency: Requests in flight; None is 32 on CPU and 256 on CUDA.
        stop_token_ids: Ids that end a reply, besides those of the checkpoint.
        tensor_parallel: GPUs to spread the model over.

    Raises:
        InputError: If the interpreter has no vLLM, or the adapter is none.
        EmevalError: If the server does not start; says why and names the log. Nothing is left running.
    """

    name = "vllm"
    token_prompts = True

    def __init__(
        self,
        model_path: str | Path,
        *,
        adapter: str | Path | None = None,
        python: str | Path = sys.executable,
        dtype: str = "auto",
        log_dir: str | Path,
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.9,
        startup_timeout: float = 900.0,
        concurrency: int | None = None,
        stop_token_ids: Sequence[int] = (),
        tensor_parallel: int = 1,
    ) -> None:
        info = probe_python(python)
        dtype = ("bfloat16" if info.cuda else "float32") if dtype == "auto" else dtype
        self.log = Path(log_dir) / "vllm.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.key = SecretStr(secrets.token_urlsafe(32))
        self._owner = os.getpid()
        self._server: Guarded | None = None
        self._merged: Path | None = None
        atexit.register(self.close)
        try:
            model = Path(model_path)
            if adapter is not None and not info.cuda:
                # Named so that a run folder is swept of it after a SIGKILL (`store.Run.locked`).
                self._merged = Path(tempfile.mkdtemp(prefix=".merged.", suffix=".part", dir=self.log.parent))
                model, adapter = merge_adapter(model, adapter, self._merged, dtype=dtype), None
            command = server_command(
                python,
                model,
                info,
                dtype=dtype,
                adapter=adapter,
                max_model_len=max_model_len,
                gpu_memory_utilization=gpu_memory_utilization,
                tensor_parallel=tensor_parallel,
            )
            env = server_env(python, info, self.key, tensor_parallel)
            self._port = self._start(command, env, startup_timeout)
        except BaseException:
            self.close()
            raise
        self._client = EndpointEngine(
            f"http://127.0.0.1:{self._port}",
            ADAPTER if adapter is not None else BASE,
            key=self.key,
            concurrency=concurrency or (256 if info.cuda else 32),
            stop_token_ids=stop_token_ids,
            vllm_fields=True,
        )

    @property
    def url(self) -> str:
        """The server's address, with `/v1`; `key` opens it."""
        return self._client.url

    @property
    def model(self) -> str:
        """The model's name at the server."""
        return str(self._client.model)

    @property
    def process_group(self) -> int:
        """The id of the process group that holds the server and all its children."""
        return self._server.group if self._server else 0

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, skip: Collection[int] = ()
    ) -> Iterator[Generated]:
        """Yield replies as they finish; see `emeval.engine.Engine`.

        Raises:
            IncompleteError: After all other replies, if a prompt got none.
            EmevalError: If the server stopped answering; what was yielded before stands.
        """
        yield from self._watched(self._client.generate(requests, sampling, skip))

    def reply_logprobs(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, tuple[float, ...]]]:
        """See `Engine.reply_logprobs`. Errors as `generate`."""
        yield from self._watched(self._client.reply_logprobs(pairs))

    def _watched(self, answers: Iterator[T]) -> Iterator[T]:
        try:
            yield from answers
        except EmevalError:
            if http_status(self._port, "/health") is None:
                raise self._failure("the vLLM server stopped answering") from None
            raise

    def close(self) -> None:
        """End the server's whole process group and remove the merged copy. Safe to call twice."""
        if os.getpid() != self._owner:
            return  # a forked child that runs our atexit hooks
        atexit.unregister(self.close)
        if self._server is not None:
            self._server.end()
        if self._merged is not None:
            shutil.rmtree(self._merged, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, command: list[str], env: dict[str, str], timeout: float) -> int:
        """Start the server and wait until it answers; returns its port."""
        for last_try in (False, True):
            port = free_port()
            with self.log.open("ab") as log:
                self._log_start = log.tell()
                self._server = Guarded([*command, "--port", str(port)], env, log)
            if self._answers(self._server, port, time.monotonic() + timeout):
                return port
            alive = self._server.running()
            self._server.end()
            if alive:
                raise self._failure(f"vLLM did not answer within {timeout:g} s")
            # Between our look at the port and the server's another process may have taken it.
            if last_try or "address already in use" not in self._log_text().lower():
                break
        raise self._failure("vLLM did not start")

    def _answers(self, server: Guarded, port: int, deadline: float) -> bool:
        """Wait for the server; False if it ended or the time is up.

        Another program may sit on the port, another vLLM even: ours is the one that opens to our key, and only to it.
        """
        while server.running() and time.monotonic() < deadline:
            if (
                http_status(port, "/health") == 200
                and http_status(port, "/v1/models") == 401
                and http_status(port, "/v1/models", self.key) == 200
            ):
                return True
            time.sleep(0.2)
        return False

    def _log_text(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def _failure(self, what: str) -> EmevalError:
        return EmevalError(f"{what}: {last_error(self._log_text())}", hint=f"The whole log is {self.log}")
