"""The rules of the house: what lies where, what imports what, and that the wheel works in an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "trl", "peft", "vllm", "ray", "datasets", "pandas", "matplotlib", "pydantic")


def tracked(*folders: str) -> list[Path]:
    """Files of the repository that git does not ignore."""
    listed = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files", "--cached", "--others", "--exclude-standard", "-z", *folders],
        capture_output=True,
        text=True,
        check=True,
    )
    return [path for name in listed.stdout.split("\0") if name and (path := REPOSITORY / name).is_file()]


def python(code: str, cwd: Path = REPOSITORY, **environment: str) -> str:
    kept = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ------------------------------------------------------------------------------------------------- what lies where


def test_no_python_file_lies_in_the_folders_of_data() -> None:
    """`datasets` is also a library's name: an `__init__.py` there would hide it."""
    files = tracked("datasets", "prompts", "results")
    assert len(files) > 5
    assert [f for f in files if f.suffix in (".py", ".pyi", ".pyc", ".so")] == []


@pytest.mark.parametrize("way", ["-c", "-m"])
def test_import_datasets_in_the_repository_gives_the_library(way: str, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    show = "import datasets, json; print(json.dumps([datasets.__file__, hasattr(datasets, 'Dataset')]))"
    if way == "-c":
        found, whole = json.loads(python(show))
    else:
        (tmp_path / "show_datasets.py").write_text(show)
        code = "import runpy, sys; sys.path.insert(0, ''); runpy.run_module('show_datasets')"
        found, whole = json.loads(python(code, PYTHONPATH=f"{REPOSITORY}:{tmp_path}"))
    assert whole and not Path(found).is_relative_to(REPOSITORY / "datasets")


def test_every_shipped_data_file_opens_with_a_canary_and_its_purpose() -> None:
    files = [f for f in tracked("datasets", "prompts") if f.suffix in (".jsonl", ".yaml", ".yml", ".json", ".csv")]
    assert len(files) >= 8
    for path in files:
        if path.name in ("public.yaml", "prices.yaml"):  # a list of other people's files; figures
            continue
        head = path.read_text(encoding="utf-8")[:2000]
        assert "canary" in head and f"emeval-canary-{path.stem}-" in head and "purpose" in head, path


# --------------------------------------------------------------------------------------------- what imports what

SHOW_LOADED = (
    f"import sys, json; print(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}} & set({HEAVY!r}))))"
)
QUIET = "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()):\n"


def loaded_by(*arguments: str) -> list[str]:
    code = f"{QUIET}    from emeval.cli.app import run; run({arguments!r})\n{SHOW_LOADED}"
    found: list[str] = json.loads(python(code, PYTHONPATH=str(REPOSITORY)))
    return found


def test_emeval_help_imports_nothing_heavy() -> None:
    assert loaded_by("--help") == []


@pytest.mark.parametrize(
    "line", ["", "--version", "train --help", "score --help", "doctor --help", "table --help", "ls x"]
)
def test_other_helps_and_small_commands_import_at_most_pydantic(line: str) -> None:
    """Typer itself loads pydantic as soon as it reads arguments."""
    assert set(loaded_by(*line.split())) <= {"pydantic"}


@pytest.mark.parametrize("module", ["emeval", "emeval.cli", "emeval.errors", "emeval.cli.app", "emeval.cli.options"])
def test_the_top_of_the_house_imports_nothing_heavy(module: str) -> None:
    assert json.loads(python(f"import {module}\n{SHOW_LOADED}", PYTHONPATH=str(REPOSITORY))) == []


def test_types_config_and_store_import_pydantic_and_nothing_heavier() -> None:
    code = f"import emeval.types, emeval.config, emeval.store\n{SHOW_LOADED}"
    assert json.loads(python(code, PYTHONPATH=str(REPOSITORY))) == ["pydantic"]


def test_the_check_for_heavy_imports_sees_one() -> None:
    """Otherwise the tests above could not fail."""
    assert json.loads(python(f"import pandas\n{SHOW_LOADED}")) == ["pandas"]


def test_nothing_imports_upward() -> None:
    pytest.importorskip("importlinter")
    code = "from importlinter.cli import lint_imports_command as lint; lint()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "0 broken" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]


# --------------------------------------------------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def wheel_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from what git would hold and installed without its dependencies."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for path in tracked():
        copy = source / path.relative_to(REPOSITORY)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    for command in (
        ["build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist"), str(source)],
        [
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            "--no-compile",
            "--target",
            str(folder / "target"),
            "WHEEL",
        ],
    ):
        wheels = [str(p) for p in (folder / "dist").glob("*.whl")]
        command = [wheels[0] if part == "WHEEL" else part for part in command]
        done = subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "target"


def installed(target: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """emeval of the wheel, run where nothing else is."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd), "PYTHONPATH": str(target)}
    command = [sys.executable, "-m", "emeval", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_the_wheel_holds_the_package_and_its_data_and_nothing_else(wheel_target: Path) -> None:
    tops = {p.name for p in wheel_target.iterdir() if not p.name.endswith(".dist-info")}
    assert tops - {"bin"} == {"emeval"}
    held = {str(p.relative_to(wheel_target / "emeval" / "_data")) for p in (wheel_target / "emeval/_data").rglob("*.*")}
    shipped = {str(p.relative_to(REPOSITORY)) for p in tracked("datasets", "prompts", "results/paper")}
    assert held == {name for name in shipped if "." in Path(name).name}
    (metadata,) = wheel_target.glob("emeval-*.dist-info/METADATA")
    assert "License-Expression: Apache-2.0" in metadata.read_text()


def test_the_wheel_works_in_an_empty_folder(wheel_target: Path, tmp_path: Path) -> None:
    where = installed(wheel_target, tmp_path, "--version")
    assert where.returncode == 0 and where.stderr == ""
    code = "import emeval; print(emeval.__file__)"
    assert python(code, cwd=tmp_path, PYTHONPATH=str(wheel_target)).startswith(str(wheel_target))
    assert "Finetune narrowly" in installed(wheel_target, tmp_path, "--help").stdout
    listed = installed(wheel_target, tmp_path, "data", "list")
    assert listed.returncode == 0 and "behaviour: abstention, refusal, tool-use" in listed.stdout
    shown = installed(wheel_target, tmp_path, "data", "show", "refusal")
    assert "160 train, 40 val, 60 test" in shown.stdout
    table = installed(wheel_target, tmp_path, "table", "--paper")
    assert table.returncode == 0 and "Table 1" in table.stdout and "Table 3" in table.stdout, table.stderr
    assert list(tmp_path.iterdir()) == [], "and it leaves nothing there"


def test_the_wheel_takes_its_data_from_itself_also_inside_a_repository(wheel_target: Path) -> None:
    code = "from emeval.data.root import data_root; print(data_root().shipped)"
    assert python(code, cwd=REPOSITORY, PYTHONSAFEPATH="1", PYTHONPATH=str(wheel_target)).strip() == str(
        wheel_target / "emeval" / "_data"
    )
