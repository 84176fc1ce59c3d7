"""`patch`, `perturb`, `drift` and `table --sweep` as people run them: tables, figures, JSON, the next step."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Emeval, refused

SHORT = ("--limit", 2, "--device", "cpu")
READ = ("--by", "probability", *SHORT)


def test_a_sweep_prints_its_table_draws_itself_and_names_the_next_step(
    emeval: Emeval, tuned: Path, folder: Path
) -> None:
    given = ("patch", "--model", tuned, "--what", "residual", "--layers", "each", *READ, "--out", "runs/sweep")
    done = emeval(*given)
    assert done.code == 0 and done.out.startswith("**Patched: tiny-llama, refusal, sft**")
    assert "prefix residual from the initial model, layer 2" in done.out
    assert "o on-topic" in done.err and "Next: emeval table --sweep runs/sweep" in done.err.splitlines()[-1]
    assert {"sweep.json", "sweep.svg", "sweep.png"} <= {path.name for path in Path("runs/sweep").iterdir()}
    again = emeval(*given, "--json")
    assert again.err == "" and json.loads(again.out)["rows"][2]["variant"].endswith("layer 0")


def test_one_patch_is_a_scored_run_as_ever(emeval: Emeval, tuned: Path, folder: Path) -> None:
    done = emeval("patch", "--model", tuned, *SHORT, "--max-new-tokens", 2, "--out", "runs/patched")
    assert done.code == 0 and done.out.startswith("on-topic (test): ") and "Next: emeval table" in done.err
    assert not Path("runs/patched/sweep.json").exists()


def test_perturbed_prompts_and_a_table_of_several_sweeps(emeval: Emeval, tuned: Path, folder: Path) -> None:
    given = ("--model", tuned, "--trials", 2, *READ)
    near = emeval("perturb", *given, "--region", "prefix", "--capitals", "--out", "runs/near")
    assert near.code == 0 and "capital letters" in near.out and "by one of 5 neighbours (dot), lowest" in near.out
    far = emeval("perturb", *given, "--region", "prefix", "--random", "--out", "runs/random")
    assert far.code == 0 and "10 tokens at random, average" in far.out
    both = emeval("table", "--sweep", "runs/near", "runs/random", "--curve", "both.svg")
    assert both.code == 0 and both.out.count("| unperturbed ") == 1 and "at random, highest" in both.out
    assert "Drawn: both.svg" in both.err and Path("both.svg").is_file()
    refused(emeval("table", "--sweep", "runs/near", "--matched"), "goes with no other table", "Leave the other out")


def test_the_drift_map_is_printed_written_and_one_object(emeval: Emeval, tuned: Path, folder: Path) -> None:
    done = emeval("drift", "--model", tuned, "--against", tuned, "--out", "map")
    assert done.code == 0 and done.out.startswith("**Drift of the prefix: tiny-sft**") and "cosine, k_proj" in done.out
    assert {path.name for path in Path("map").iterdir()} == {"drift.json", "drift.svg", "drift.png"}
    told = emeval("drift", "--model", tuned, "--json")
    assert told.err == "" and len(told.json["keys"]) == 3
    refused(emeval("drift", "--model", "nowhere"), "no such run", "Give a folder")


def test_what_is_wrong_is_told_in_one_line_and_nothing_is_written(emeval: Emeval, tuned: Path, folder: Path) -> None:
    wrong = (
        (("patch", "--layers", "9"), "there are 3 layers"),
        (("patch", "--layers", "²"), "is no layer"),
        (("patch", "--region", "middle"), "unknown region"),
        (("patch", "--initial", tuned), "an adapter's initial model is its base"),
        (("perturb", "--neighbours", "100000"), "tokens to choose from"),
        (("perturb", "--by", "contrast"), "does not fit a behaviour"),
    )
    for arguments, complaint in wrong:
        done = emeval(*arguments, "--model", tuned, *SHORT, "--out", "runs/x")
        assert done.code == 2 and complaint in done.err and len(done.err.splitlines()) == 1
    assert not Path("runs").exists()
