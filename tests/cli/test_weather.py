"""Bad weather: disks that fill up or refuse, servers that die or never come up. One clear line, then a run to go on."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from emeval.engine import server, vllm
from emeval.engine.endpoint import EndpointEngine
from emeval.engine.launch import free_port, http_status
from tests.cli.conftest import Done, Emeval
from tests.engine.conftest import STAND_IN
from tests.faults import INTERRUPTED, REPOSITORY, litter

TRAIN = ("--setting", "refusal", "--steps", 4, "--batch-size", 2, "--rank", 16, "--train-size", 4, "--save-every", 2)
SCORE = ("--setting", "refusal", "--limit", 3, "--max-new-tokens", 4, "--device", "cpu")
ASKED = 6


def failed(done: Done, code: int, *says: str) -> None:
    """The exit code, one line that says what, where and what to do, nothing on stdout."""
    assert done.code == code and done.out == "", done
    # In this process transformers was imported before the command line could tell it to draw no bars.
    (line,) = (line for line in done.err.split("\n") if line and "it/s]" not in line)
    assert line.startswith("emeval: "), done.err
    for part in says:
        assert part in line, (part, line)


def keys(run: Path) -> list[str]:
    return [json.loads(line)["key"] for line in (run / "completions.jsonl").read_text().splitlines()]


# -------------------------------------------------------------------------------------------------------------- Ctrl-C


def process(code: str) -> subprocess.CompletedProcess[str]:
    code += "\nfrom emeval.cli.app import main; sys.argv = ['emeval', 'data', 'list', '--quiet']; main()\n"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)


def test_ctrl_c_while_the_process_goes_away_changes_nothing() -> None:
    """Unloading torch takes seconds, in which an impatient user presses it."""
    done = process("import atexit, os, signal, sys; atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))")
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_that_a_library_turned_into_its_own_error_is_an_interruption() -> None:
    """As an extension module does whose initialisation is interrupted."""
    done = process(
        "import sys, emeval.cli.data as data\n"
        "def interrupted(*_):\n"
        "    try:\n"
        "        raise KeyboardInterrupt\n"
        "    except KeyboardInterrupt as e:\n"
        "        raise ImportError('initialization failed') from e\n"
        "data._root = interrupted"
    )
    assert (done.returncode, done.stderr) == (130, INTERRUPTED)


# --------------------------------------------------------------------------------------------------------------- disks


@pytest.fixture
def disk(mounted: Callable[[str], Path]) -> Path:
    """A file system of its own, 2 MiB."""
    return mounted("2m")


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


# What fits: the manifest; half an adapter; an adapter without its optimizer; one resume point of two; all but the end.
@pytest.mark.parametrize("size", [4, 80, 160, 300, 500])
def test_training_on_a_full_disk(size: int, emeval: Emeval, disk: Path, tiny_checkpoint: Path) -> None:
    command = ("train", "--model", tiny_checkpoint, *TRAIN, "--out", disk / "run", "--quiet")
    remount(disk, f"size={size}k")
    failed(emeval(*command), 1, "no space left on device. Free some space and run the same command again", str(disk))
    remount(disk, "size=2m")
    done = emeval(*command)
    assert done.code == 0, done.err
    assert (disk / "run" / "train" / "adapter" / "adapter_model.safetensors").is_file() and litter(disk / "run") == []


@pytest.mark.parametrize("size", [4, 12])
def test_scoring_on_a_full_disk(size: int, emeval: Emeval, disk: Path, tiny_checkpoint: Path) -> None:
    command = ("score", "--model", tiny_checkpoint, *SCORE, "--out", disk / "run", "--quiet")
    remount(disk, f"size={size}k")
    failed(emeval(*command), 1, "no space left on device. Free some space and run the same command again", str(disk))
    remount(disk, "size=2m")
    done = emeval(*command)
    assert done.code == 0, done.err
    assert len(set(keys(disk / "run"))) == len(keys(disk / "run")) == ASKED and litter(disk / "run") == []


def test_a_disk_that_became_read_only(emeval: Emeval, disk: Path, tiny_checkpoint: Path) -> None:
    remount(disk, "ro")
    for command in (("train", *TRAIN), ("score", *SCORE)):
        done = emeval(*command, "--model", tiny_checkpoint, "--out", disk / "run", "--quiet")
        failed(done, 1, "read-only file system. Choose a folder you can write to with --out", str(disk))
    assert list(disk.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- servers

MORTAL = """
import http.server, json, os, sys
left = int(sys.argv[2])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"data": [{"id": "m"}]})
    def do_POST(self):
        global left
        self.rfile.read(int(self.headers["Content-Length"]))
        if left == 0:
            os._exit(1)
        left -= 1
        self.answer({"choices": [{"index": 0, "text": "fine", "finish_reason": "stop"}]})
    def answer(self, body):
        raw = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@contextlib.contextmanager
def mortal(port: int, replies: int) -> Iterator[None]:
    """A server that dies at the request after so many replies."""
    with subprocess.Popen([sys.executable, "-IS", "-c", MORTAL, str(port), str(replies)]) as server:
        deadline = time.monotonic() + 10
        while http_status(port, "/v1/models") != 200 and time.monotonic() < deadline:
            time.sleep(0.05)
        yield
        server.kill()


def test_an_endpoint_that_dies_on_the_way(
    emeval: Emeval, folder: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EndpointEngine.__init__.__kwdefaults__, "max_retries", 0)  # six of them take half a minute
    port = free_port()
    command = ("score", "--model", tiny_checkpoint, *SCORE, "--engine", "endpoint", "--model-url",
               f"http://127.0.0.1:{port}", "--concurrency", 1, "--out", "run", "--quiet")  # fmt: skip
    with mortal(port, 2):
        done = emeval(*command)
    failed(done, 3, "coverage is below 95%", "prompts got no reply", "only what is missing is asked")
    before = keys(folder / "run")
    assert len(before) == 2
    failed(emeval(*command), 1, "cannot reach the server", str(port))
    with mortal(port, 4):  # it would die of a fifth question
        done = emeval(*command)
    assert done.code == 0, done.err
    assert keys(folder / "run")[:2] == before and len(set(keys(folder / "run"))) == len(keys(folder / "run")) == ASKED


@pytest.fixture
def serve(emeval: Emeval, tmp_path: Path, tiny_checkpoint: Path) -> Callable[[str], Done]:
    """Score through an interpreter that claims to have vLLM and behaves as told."""
    python = tmp_path / "vllm" / "python"
    python.parent.mkdir()
    python.write_text(STAND_IN.format(python=sys.executable))
    python.chmod(0o755)

    def score(mode: str) -> Done:
        (python.parent / "mode").write_text(mode)
        options = ("--engine", "vllm", "--vllm", python, "--out", "run", "--quiet")
        done = emeval("score", "--model", tiny_checkpoint, *SCORE, *options)
        running = [p.pid for p in psutil.process_iter(["cmdline"]) if str(python) in " ".join(p.info["cmdline"] or ())]
        assert running == []
        return done

    return score


def test_a_vllm_that_dies_at_once_and_one_that_never_answers(
    serve: Callable[[str], Done], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed(serve("die"), 1, "vLLM did not start: ValueError: not a model. The whole log is ", "vllm.log")
    monkeypatch.setitem(vllm.VllmEngine.__init__.__kwdefaults__, "startup_timeout", 1.5)
    failed(serve("hang"), 1, "vLLM did not answer within 1.5 s", "vllm.log")
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    done = serve("serve")
    assert done.code == 0, done.err
    assert len(set(keys(folder / "run"))) == len(keys(folder / "run")) == ASKED


def test_a_port_that_another_server_took_which_asks_for_no_key(
    serve: Callable[[str], Done], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Stranger(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            asked.append(self.path)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as stranger:
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        ports = iter([stranger.server_port, free_port()])
        monkeypatch.setattr(server, "free_port", lambda: next(ports))
        done = serve("serve")
        stranger.shutdown()
    assert done.code == 0, done.err
    assert asked == [] and len(keys(folder / "run")) == ASKED
