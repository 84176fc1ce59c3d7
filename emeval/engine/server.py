"""One vLLM server process: started, waited for, asked whether it lives, ended."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from emeval.engine.launch import free_port, http_status, last_error
from emeval.errors import EmevalError
from emeval.guard import Guarded


class Server:
    """A server that answers to our key; `end` ends its whole process group.

    Args:
        command: Its command line, without the port.
        env: Its whole environment.
        key: The key it was told.
        log: Gets its output, behind what is there.
        timeout: Seconds until it must answer.

    Raises:
        EmevalError: If it does not start; says why and names the log. Nothing is left running.
    """

    def __init__(self, command: Sequence[str], env: dict[str, str], key: SecretStr, log: Path, timeout: float) -> None:
        self.key = key
        self.log = log
        self.port = 0
        self._process: Guarded | None = None
        try:
            self._start(command, env, timeout)
        except BaseException:
            self.end()
            raise

    @property
    def group(self) -> int:
        """The id of the process group that holds the server and all its children."""
        return self._process.group if self._process else 0

    def alive(self) -> bool:
        """Whether it answers at all."""
        return http_status(self.port, "/health") is not None

    def complete(self, **fields: Any) -> dict[str, Any]:
        """The answer to one completions request, made outside of any run.

        Raises:
            EmevalError: If there is none; says what the log says.
        """
        assert self._process is not None
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        headers = {"Authorization": f"Bearer {self.key.get_secret_value()}", "Content-Type": "application/json"}
        try:
            connection.request("POST", "/v1/completions", json.dumps(fields), headers)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException):
            raise self.failure("the vLLM server stopped answering") from None
        finally:
            connection.close()
        if response.status != 200:
            raise self.failure(f"the vLLM server answered {response.status} to a first request")
        answer: dict[str, Any] = json.loads(body)
        return answer

    def failure(self, what: str) -> EmevalError:
        """The error that says `what` went wrong, and why by the log."""
        return EmevalError(f"{what}: {last_error(self._log_text())}", hint=f"The whole log is {self.log}")

    def end(self) -> None:
        """End the whole process group. Safe to call twice."""
        if self._process is not None:
            self._process.end()

    def _start(self, command: Sequence[str], env: dict[str, str], timeout: float) -> None:
        for last_try in (False, True):
            self.port = free_port()
            with self.log.open("ab") as log:
                self._log_start = log.tell()
                self._process = Guarded([*command, "--port", str(self.port)], env, log)
            if self._answers(self._process, time.monotonic() + timeout):
                return
            alive = self._process.running()
            self._process.end()
            if alive:
                raise self.failure(f"vLLM did not answer within {timeout:g} s")
            # Between our look at the port and the server's another process may have taken it.
            if last_try or "address already in use" not in self._log_text().lower():
                break
        raise self.failure("vLLM did not start")

    def _answers(self, process: Guarded, deadline: float) -> bool:
        """Wait for the server; False if it ended or the time is up.

        Another program may sit on the port, another vLLM even: ours is the one that opens to our key, and only to it.
        """
        while process.running() and time.monotonic() < deadline:
            if (
                http_status(self.port, "/health") == 200
                and http_status(self.port, "/v1/models") == 401
                and http_status(self.port, "/v1/models", self.key) == 200
            ):
                return True
            time.sleep(0.2)
        return False

    def _log_text(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")
