"""What tests of the vLLM engine share: a stand-in server, the real interpreter, the real small model."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAND_IN = """#!{python} -IS
import http.server, json, os, pathlib, sys, time
if sys.argv[1] == "-c":
    print(json.dumps(["0.33.0", False]))
    sys.exit()
here = pathlib.Path(__file__).parent
mode = (here / "mode").read_text()
(here / "seen.json").write_text(json.dumps([sys.argv, dict(os.environ)]))
if mode == "die":
    sys.exit("ValueError: not a model")
if mode == "port":
    (here / "mode").write_text("serve")
    sys.exit("OSError: [Errno 98] Address already in use")
if mode == "hang":
    os.fork()
    time.sleep(600)
patch = None
if "--kv-transfer-config" in sys.argv:
    patch = json.loads(sys.argv[sys.argv.index("--kv-transfer-config") + 1])["kv_connector_extra_config"]
print(json.dumps(sys.argv), flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        allowed = self.headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]
        self.answer(200 if allowed or self.path == "/health" else 401, {{"data": [{{"id": "base"}}]}})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["prompt"] == [666]:
            print("RuntimeError: out of luck", flush=True)
            os._exit(3)
        usage = {{}}
        if patch:
            saved = pathlib.Path(patch["folder"], "blocks.safetensors")
            if patch["mode"] == "save" and mode != "unsaved":
                saved.touch()
            if patch["mode"] == "load" and saved.exists() and mode != "untaken":
                usage = {{"prompt_tokens_details": {{"cached_tokens": len(body["prompt"]) - 1}}}}
        choice = {{"text": "hi", "finish_reason": "stop", "token_ids": [4, 2]}}
        self.answer(200, {{"choices": [choice], "usage": usage}})
    def answer(self, status, body):
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)
if os.fork() == 0:  # the real one has children too
    time.sleep(600)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[[str], Path]:
    """An interpreter that claims to have vLLM, and behaves as told."""

    def make(mode: str) -> Path:
        path = tmp_path / "python"
        path.write_text(STAND_IN.format(python=sys.executable))
        path.chmod(0o755)
        (tmp_path / "mode").write_text(mode)
        return path

    return make


@pytest.fixture(scope="module")
def python() -> Path:
    path = Path(os.environ.get("EMEVAL_VLLM_PYTHON") or ROOT / ".venv-vllm/bin/python")
    if not path.exists():
        message = f"no vLLM at {path} (EMEVAL_VLLM_PYTHON)"
        pytest.fail(message) if os.environ.get("EMEVAL_REQUIRE_VLLM") == "1" else pytest.skip(message)
    return path


@pytest.fixture(scope="module")
def smollm2() -> Path:
    if given := os.environ.get("EMEVAL_TEST_MODEL"):
        return Path(given)
    from emeval.models import demo_model

    return demo_model()
