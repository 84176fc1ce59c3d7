"""The command line as a process: exit codes, Ctrl-C, pipes that close, terminals that cannot show a character."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
EMEVAL = [sys.executable, "-m", "emeval"]


def environment(**changes: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EMEVAL_") or k == "EMEVAL_CACHE_DIR"}
    return kept | {"PYTHONPATH": str(REPOSITORY)} | changes


def emeval(*arguments: object, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EMEVAL, *map(str, arguments)],
        cwd=cwd,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_exit_0_prints_results_on_stdout_and_hints_on_stderr(tmp_path: Path) -> None:
    done = emeval("data", "list", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("domain: auto, finance, health, legal\n")
    assert done.stderr == "Next: emeval data show NAME\n"


def test_exit_2_for_bad_input_with_one_line(tmp_path: Path) -> None:
    for arguments in (
        ("trian",),
        ("train", "--lr", "fast"),
        ("ls",),
        ("train", "--model", "no", "--setting", "refusal"),
    ):
        done = emeval(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("emeval: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_exit_130_when_interrupted_with_one_line_and_a_run_to_go_on_from(tiny_checkpoint: Path, tmp_path: Path) -> None:
    command = [*EMEVAL, "train", "--model", str(tiny_checkpoint), "--setting", "refusal", "--out", "run", "--quiet"]
    command += ["--steps", "5000", "--batch-size", "2", "--rank", "2", "--save-every", "5", "--json", "--device", "cpu"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), text=True, stdout=pipe, stderr=pipe) as training:
        deadline = time.monotonic() + 90
        while not list((tmp_path / "run" / "train").glob("checkpoint-*/emeval-whole")):
            assert training.poll() is None and time.monotonic() < deadline, training.communicate()
            time.sleep(0.05)
        training.send_signal(signal.SIGINT)
        out, err = training.communicate(timeout=60)
    assert training.returncode == 130
    assert err == "emeval: interrupted; what was stored is kept. Run the same command again to go on.\n"
    assert json.loads(out)["exit_code"] == 130
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["train"]["status"] == "running"


def test_ctrl_c_before_anything_is_loaded_is_an_interruption_too(tmp_path: Path) -> None:
    code = (
        "import os, signal, emeval.cli.data as data\n"
        "data._root = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
        "from emeval.cli.app import main; import sys; sys.argv = ['emeval', 'data', 'list']; main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 130 and done.stderr.startswith("emeval: interrupted") and done.stderr.count("\n") == 1


def test_a_reader_that_has_seen_enough_is_no_failure(tmp_path: Path) -> None:
    read, written = os.pipe()
    os.close(read)
    for arguments in (["data", "list", "--quiet"], ["table", "--paper", "--quiet"]):
        done = subprocess.run(
            [*EMEVAL, *arguments], cwd=tmp_path, env=environment(), stdout=written, stderr=subprocess.PIPE, text=True
        )
        assert done.stderr == "" and done.returncode in (0, 1)
    os.close(written)


def test_a_terminal_that_knows_only_ascii_shows_codes_instead_of_failing(tmp_path: Path) -> None:
    domain = tmp_path / "words.jsonl"
    row = {"id": "é🙂", "split": "train", "question": "x"}
    domain.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for _ in range(2)))
    done = emeval("data", "validate", domain, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 2 and "duplicate id '\\xe9\\U0001f642'" in done.stderr
    done = emeval("data", "show", "finance", "--lines", 160, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "\\xa3" in done.stdout, "the pound sign"


def test_a_package_that_is_missing_is_told_with_the_command_that_brings_it(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from emeval.cli.app import main; sys.argv = ['emeval', *sys.argv[1:]]; main()\n"
    )
    for arguments in (["train"], ["score", "--setting", "refusal"], ["patch"]):
        command = [sys.executable, "-c", code, *arguments, "--model", str(tmp_path)]
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
        assert done.returncode in (1, 2) and done.stderr.count("\n") == 1, done.stderr
        if done.returncode == 1:
            assert "torch is not installed. Run: pip install 'emeval[train]'" in done.stderr
    assert "torch is not installed" in done.stderr, "patching needs it for certain"
