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
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

from pydantic import SecretStr

from emeval.engine import Pair, Request
from emeval.engine.endpoint import EndpointEngine
from emeval.engine.launch import ADAPTER, BASE, VllmInfo, probe_python, server_command, server_env
from emeval.engine.patched import PatchedPrefix, PatchFolder
from emeval.engine.server import Server
from emeval.errors import EmevalError, InputError
from emeval.models import merge_adapter
from emeval.types import Generated, Sampling

T = TypeVar("T")

__all__ = ["PatchedPrefix", "VllmEngine", "VllmInfo", "probe_python"]


class VllmEngine:
    """A model served by vLLM; starts the server, and `close` ends it. A context manager.

    Args:
        model_path: Checkpoint folder.
        adapter: LoRA adapter folder on top of it.
        merge: Serve a temporary copy with the adapter merged, instead of the adapter as it is. Default: on CPU, where
            adapter decoding is slow.
        python: Interpreter that has vLLM.
        dtype: "auto" is float32 on CPU and bfloat16 on CUDA; else a name vLLM knows.
        log_dir: Gets `vllm.log`, and while the engine lives the merged copy and the patched prefix.
        max_model_len: Tokens of prompt and reply together; None takes what the model allows and memory holds.
        gpu_memory_utilization: Share of the GPU's memory to take, 0 to 1.
        startup_timeout: Seconds until the server must answer.
        concurrency: Requests in flight; None is 32 on CPU and 256 on CUDA.
        stop_token_ids: Ids that end a reply, besides those of the checkpoint.
        tensor_parallel: GPUs to spread the model over.
        prefix: Answer with another model's keys and values at these first tokens of every prompt that starts with them
            (`PatchedPrefix.covers`). That model is served first, to save them, and ended. A second start, then.

    Raises:
        InputError: If the interpreter has no vLLM, the adapter is none, or a patched prefix is asked of several GPUs.
        EmevalError: If the server does not start; says why and names the log. Nothing is left running.
    """

    name = "vllm"
    token_prompts = True

    def __init__(
        self,
        model_path: str | Path,
        *,
        adapter: str | Path | None = None,
        merge: bool | None = None,
        python: str | Path = sys.executable,
        dtype: str = "auto",
        log_dir: str | Path,
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.9,
        startup_timeout: float = 900.0,
        concurrency: int | None = None,
        stop_token_ids: Sequence[int] = (),
        tensor_parallel: int = 1,
        prefix: PatchedPrefix | None = None,
    ) -> None:
        if prefix is not None and tensor_parallel > 1:
            raise InputError("a patched prefix is served by one GPU only", hint="Leave tensor parallelism out")
        info = probe_python(python)
        self.log = Path(log_dir) / "vllm.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.key = SecretStr(secrets.token_urlsafe(32))
        self._owner = os.getpid()
        self._server: Server | None = None
        self._folders: list[Path] = []
        self._prefix = prefix
        self._dtype = ("bfloat16" if info.cuda else "float32") if dtype == "auto" else dtype
        self._merges = not info.cuda if merge is None else merge
        self._command = partial(
            server_command,
            python,
            info=info,
            dtype=self._dtype,
            max_model_len=max_model_len,
            gpu_memory_utilization=gpu_memory_utilization,
            tensor_parallel=tensor_parallel,
        )
        self._env = partial(server_env, python, info, self.key, tensor_parallel)
        self._timeout = startup_timeout
        atexit.register(self.close)
        try:
            patch = self._saved(prefix) if prefix is not None else None
            self._server, model = self._serve(model_path, adapter, patch, "load")
            if patch is not None:
                patch.check(self._server, model)
        except BaseException:
            self.close()
            raise
        self._client = EndpointEngine(
            f"http://127.0.0.1:{self._server.port}",
            model,
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
        """See `Engine.reply_logprobs`; under a patched prefix too. Errors as `generate`.

        Raises:
            InputError: If a prompt is a patched prefix and nothing more: the reply's first token is predicted at the
                prefix's last, which is not computed.
        """
        if self._prefix is not None and any(tuple(prompt) == self._prefix.ids for prompt, _ in pairs):
            raise InputError("the prompt is the patched prefix alone", hint="Ask for what follows a question")
        yield from self._watched(self._client.reply_logprobs(pairs))

    def _watched(self, answers: Iterator[T]) -> Iterator[T]:
        assert self._server is not None
        try:
            yield from answers
        except EmevalError:
            if not self._server.alive():
                raise self._server.failure("the vLLM server stopped answering") from None
            raise

    def close(self) -> None:
        """End the server's whole process group and remove what was written for it. Safe to call twice."""
        if os.getpid() != self._owner:
            return  # a forked child that runs our atexit hooks
        atexit.unregister(self.close)
        if self._server is not None:
            self._server.end()
        self._remove_folders()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _saved(self, prefix: PatchedPrefix) -> PatchFolder:
        """The source's keys and values of the prefix, from a server of its own that has gone again."""
        patch = PatchFolder(self._temporary("prefix"), prefix.ids)
        self._server, model = self._serve(prefix.base, prefix.adapter, patch, "save")
        patch.save(self._server, model)
        self._server.end()
        self._remove_folders(but=patch.path)
        return patch

    def _serve(
        self,
        model: str | Path,
        adapter: str | Path | None,
        patch: PatchFolder | None,
        mode: Literal["save", "load"],
    ) -> tuple[Server, str]:
        """A started server, and the name it serves the model under."""
        if adapter is not None and self._merges:
            model = merge_adapter(model, adapter, self._temporary("merged"), dtype=self._dtype)
            adapter = None
        command = self._command(model=Path(model), adapter=adapter)
        env = self._env()
        if patch is not None:
            command, env = [*command, *patch.options(mode)], env | patch.env()
        return Server(command, env, self.key, self.log, self._timeout), ADAPTER if adapter is not None else BASE

    def _temporary(self, name: str) -> Path:
        # Named so that a run folder is swept of it after a SIGKILL (`store.Run.locked`).
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".part", dir=self.log.parent)).absolute()
        self._folders.append(folder)
        return folder

    def _remove_folders(self, but: Path | None = None) -> None:
        for folder in self._folders:
            if folder != but:
                shutil.rmtree(folder, ignore_errors=True)
