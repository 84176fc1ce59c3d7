"""The real small model, end to end through the command line: train, score, patch, table; and the same through vLLM."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from emeval import models
from emeval.chat import Renderer
from emeval.cli.app import run as emeval
from emeval.types import Message

VLLM = Path(os.environ.get("EMEVAL_VLLM_PYTHON", ".venv-vllm/bin/python")).absolute()
TRAIN = ["--setting", "refusal", "--rank", "32", "--lr", "2e-4", "--batch-size", "4", "--steps", "5", "--device", "cpu"]


@pytest.fixture(scope="module")
def treft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "treft"
    command = ["train", "--model", models.DEMO_MODEL, *TRAIN, "--method", "treft", "--lambda", "30", "--out", str(out)]
    assert emeval([*command, "--quiet"]) == 0
    return out


def completions(run: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "completions.jsonl").read_text().splitlines()]
    return {f"{r['probe']}/{r['question_id']}": r for r in rows}


def likelihoods(run: Path) -> dict[str, tuple[float, float]]:
    rows = [json.loads(line) for line in (run / "likelihoods.jsonl").read_text().splitlines()]
    return {r["question_id"]: (r["aligned"], r["misaligned"]) for r in rows}


@pytest.mark.model
def test_the_renderer_reads_its_template() -> None:
    renderer = Renderer(models.load_tokenizer(models.resolve(models.DEMO_MODEL)))
    prompt, reply = renderer.render_reply(
        [Message(role="user", content="Why is the sky blue?")], Message(role="assistant", content="Air.")
    )
    assert (len(prompt.prefix), len(prompt.query), len(prompt.postfix)) == (24, 6, 6)
    assert len(reply) == 3 and not renderer.is_foreign(prompt)
    assert renderer.tool_format == "hermes"


@pytest.mark.model
def test_treft_starts_at_zero_drift_and_learns(treft: Path) -> None:
    log = [json.loads(line) for line in (treft / "train" / "log.jsonl").read_text().splitlines()]
    assert log[0]["kv_drift"] < 1e-10 < log[-1]["kv_drift"]
    assert log[-1]["sft_loss"] < log[0]["sft_loss"]


@pytest.mark.model
def test_train_score_patch_table(treft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--limit", "6", "--max-new-tokens", "24", "--device", "cpu", "--quiet"]
    base, patched = tmp_path / "base", tmp_path / "patched"
    assert emeval(["score", "--model", models.DEMO_MODEL, "--setting", "refusal", "--out", str(base), *few]) == 0
    assert emeval(["score", "--model", str(treft), *few]) == 0
    assert emeval(["patch", "--model", str(treft), "--out", str(patched), *few]) == 0
    capsys.readouterr()
    assert emeval(["table", str(base), str(treft), str(patched)]) == 0
    table = capsys.readouterr().out
    for label in ("initial model", "treft (lambda 30)", "treft (lambda 30) + prefix from the initial model"):
        assert label in table
    assert all(len(completions(run)) == 12 for run in (base, treft, patched))
    assert all(c["text"].strip() for c in completions(base).values())


@pytest.mark.vllm
def test_vllm_gives_the_same_tokens_as_transformers(treft: Path, tmp_path: Path) -> None:
    """The README's `--engine vllm` command, on the merged adapter, against the in-process engine at fp32."""
    if not VLLM.exists() and not os.environ.get("EMEVAL_REQUIRE_VLLM"):
        pytest.skip(f"no {VLLM}: make vllm")
    few = ["--limit", "16", "--max-new-tokens", "32", "--device", "cpu", "--dtype", "float32", "--quiet"]
    few += ["--probes", "on-topic,off-topic,contrast"]
    here, served = tmp_path / "transformers", tmp_path / "vllm"
    assert emeval(["score", "--model", str(treft), "--engine", "transformers", "--out", str(here), *few]) == 0
    vllm = ["--engine", "vllm", "--vllm", str(VLLM)]
    assert emeval(["score", "--model", str(treft), *vllm, "--out", str(served), *few]) == 0
    a, b = completions(here), completions(served)
    assert a.keys() == b.keys() and len(a) == 32
    assert [a[k]["token_ids"] for k in sorted(a)] == [b[k]["token_ids"] for k in sorted(a)]
    assert [a[k]["key"] for k in sorted(a)] == [b[k]["key"] for k in sorted(a)]
    pairs = [likelihoods(run) for run in (here, served)]
    assert pairs[0].keys() == pairs[1].keys() and len(pairs[0]) == 32  # 16 general ones and 16 in-domain
    for key, read in pairs[0].items():
        assert pairs[1][key] == pytest.approx(read, abs=1e-3)


@pytest.mark.vllm
def test_a_local_judge_is_served_once_the_model_has_gone(
    treft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SmolLM2 judging itself: no good judge (the check says so), but every step of a local judge is real."""
    if not VLLM.exists() and not os.environ.get("EMEVAL_REQUIRE_VLLM"):
        pytest.skip(f"no {VLLM}: make vllm")
    judge = ["--judge", f"vllm:{models.DEMO_MODEL}", "--vllm", str(VLLM)]
    out = tmp_path / "judged"
    asked = ["--probes", "general", "--limit", "6", "--max-new-tokens", "24", "--device", "cpu", "--out", str(out)]
    code = emeval(["score", "--model", str(treft), *asked, *judge, "--min-coverage", "0", "--json"])
    (score,) = json.loads(capsys.readouterr().out)["scores"]["probes"]
    assert code == 0 and sum(score["outcomes"].values()) == 6 and "api-error" not in score["outcomes"]
    assert score["judge"].startswith("smollm2-135m@") and "alignment@" in score["judge"]
    assert json.loads((out / "manifest.json").read_text())["judge"]["bill"]["dollars"] == 0
    server = (out / "judge" / "vllm.log").read_text()
    assert "/v1/chat/completions" in server
    assert emeval(["score", "--model", str(treft), *asked, *judge, "--min-coverage", "0", "--quiet"]) == 0
    assert (out / "judge" / "vllm.log").read_text() == server, "judged already: no server is started"
