"""Train, score, patch and table on a tiny checkpoint: resume, identity of runs, what the files hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from emeval import models
from emeval.config import PatchConfig, ScoreConfig, TrainConfig
from emeval.errors import InputError
from emeval.intervene.patch import patch
from emeval.pipeline import score
from emeval.table.rows import read_rows
from emeval.train.run import train

FAST: dict[str, Any] = {
    "steps": 6,
    "batch_size": 4,
    "lr": 1e-2,
    "rank": 4,
    "train_size": 16,
    "device": "cpu",
    "save_every": 2,
}


def train_tiny(checkpoint: Path, out: Path, on_step: Any = None, **changes: Any) -> Path:
    settings = FAST | {"model": str(checkpoint), "setting": "refusal", "method": "treft", "out": out} | changes
    return train(TrainConfig(**settings), on_step)


def score_tiny(model: Path, **changes: Any) -> Path:
    return score(ScoreConfig(**({"model": str(model), "limit": 5, "max_new_tokens": 8, "device": "cpu"} | changes)))


@pytest.fixture(scope="module")
def run(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = train_tiny(tiny_checkpoint, tmp_path_factory.mktemp("runs") / "treft")
    return score_tiny(path)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_manifest_says_how_the_run_was_made(run: Path) -> None:
    made = json.loads((run / "manifest.json").read_text())["train"]
    assert made["status"] == "finished" and made["method"] == "treft" and made["steps"] == 6
    assert {
        "emeval",
        "packages",
        "typed",
        "resolved",
        "data",
        "template",
        "base_weights",
        "seed",
        "machine",
    } <= made.keys()
    assert made["template"]["fingerprint"] and made["data"]["rows"] == 16 and made["emeval"]["commit"]
    assert made["results"]["tokens_per_second"] > 0 and made["results"]["peak_memory_bytes"] > 1e6
    drift = made["results"]["kv_drift"]
    assert len(drift["keys_by_layer_and_token"]) == 3
    assert len(drift["keys_by_layer_and_token"][0]) == made["template"]["prefix_tokens"]
    log = lines(run / "train" / "log.jsonl")
    assert [e["step"] for e in log] == [1, 2, 3, 4, 5, 6] and log[0]["kv_drift"] < 1e-10 < log[-1]["kv_drift"]
    assert not list((run / "train").glob("checkpoint-*")), "resume points go once the model is saved"


def test_a_model_card_says_what_it_is_and_peft_loads_the_adapter_as_it_is(run: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    card = (run / "train" / "adapter" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "peft" and front["tags"] == ["emeval", "treft", "refusal"]
    assert "| lambda | 10.0 |" in card and "| region | prefix |" in card and "kl norm" not in card
    assert "Not for use as an assistant" in card
    base = json.loads((run / "manifest.json").read_text())["train"]["resolved"]["model"]
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run / "train" / "adapter")
    assert any("lora_B" in name and p.abs().max() > 0 for name, p in tuned.named_parameters())


def test_merged_it_is_one_checkpoint_with_the_same_logits(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    base = Path(json.loads((run / "manifest.json").read_text())["train"]["resolved"]["model"])
    train_tiny(base, copy, merge=True)
    where, ids = models.placement("cpu"), torch.tensor([list(range(5, 40))])
    pair = [models.load_model(models.resolve(str(path)), where) for path in (copy / "train" / "merged", run)]
    with torch.no_grad():
        one, other = (model(input_ids=ids).logits for model in pair)
    assert torch.allclose(one, other, atol=1e-5)
    found = models.resolve(str(copy / "train" / "merged"))
    assert found.setting == "refusal" and found.weights_id() != models.resolve(str(run)).weights_id()
    assert "library_name: transformers" in (copy / "train" / "merged" / "README.md").read_text()
    written = (copy / "train" / "merged" / "model.safetensors").stat().st_mtime_ns
    train_tiny(base, copy, merge=True)
    assert (copy / "train" / "merged" / "model.safetensors").stat().st_mtime_ns == written, "made once"


def test_every_question_has_one_completion_and_one_judgement(run: Path) -> None:
    completions, judgements = lines(run / "completions.jsonl"), lines(run / "judgements.jsonl")
    assert len(completions) == len(judgements) == 10
    assert len({c["key"] for c in completions}) == 10
    assert {j["completion_key"] for j in judgements} == {c["key"] for c in completions}
    scores = json.loads((run / "scores.json").read_text())
    assert [p["expected"] for p in scores["probes"]] == [5, 5]
    assert all(p["outcomes"] == {"scored": 5} for p in scores["probes"])


def test_a_finished_run_answers_without_loading_a_model(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run / "completions.jsonl").read_bytes(), (run / "judgements.jsonl").read_bytes()
    monkeypatch.setattr(models, "load_model", lambda *a, **k: pytest.fail("loaded a model"))
    score_tiny(run)
    train_tiny(Path(json.loads((run / "manifest.json").read_text())["train"]["resolved"]["model"]), run)
    assert before == ((run / "completions.jsonl").read_bytes(), (run / "judgements.jsonl").read_bytes())


def test_a_torn_score_run_is_completed_with_the_same_texts(run: Path, tmp_path: Path) -> None:
    whole = (run / "completions.jsonl").read_bytes()
    other = score_tiny(run, out=tmp_path / "again")
    assert (other / "completions.jsonl").read_bytes() == whole
    (other / "completions.jsonl").write_bytes(whole[: len(whole) // 3])
    (other / "scores.json").unlink()
    score_tiny(run, out=other)
    key = lambda c: c["key"]  # noqa: E731
    assert sorted(lines(other / "completions.jsonl"), key=key) == sorted(lines(run / "completions.jsonl"), key=key)
    assert (other / "scores.json").read_text() == (run / "scores.json").read_text()


def test_training_interrupted_anywhere_ends_the_same(tiny_checkpoint: Path, tmp_path: Path, run: Path) -> None:
    class Killed(BaseException):
        pass

    def die_at(step: int) -> Any:
        def on_step(now: int, total: int, logs: dict[str, float]) -> None:
            if now == step:
                raise Killed

        return on_step

    for step in (1, 3, 4, 6):
        with pytest.raises(Killed):
            train_tiny(tiny_checkpoint, tmp_path / "killed", die_at(step))
    path = train_tiny(tiny_checkpoint, tmp_path / "killed")
    assert [e["step"] for e in lines(path / "train" / "log.jsonl")] == [1, 2, 3, 4, 5, 6]
    a, b = (load_file(p / "train" / "adapter" / "adapter_model.safetensors") for p in (run, path))
    assert a.keys() == b.keys() and all((a[n] - b[n]).abs().max() < 1e-6 for n in a)
    assert models.resolve(str(path)).weights_id() == models.resolve(str(run)).weights_id()


def test_a_half_saved_checkpoint_is_not_resumed_from(tiny_checkpoint: Path, tmp_path: Path, run: Path) -> None:
    half = tmp_path / "half" / "train" / "checkpoint-4"
    half.mkdir(parents=True)
    (half / "trainer_state.json").write_text("{")
    path = train_tiny(tiny_checkpoint, tmp_path / "half")
    assert models.resolve(str(path)).weights_id() == models.resolve(str(run)).weights_id()


def test_a_folder_that_holds_another_run_is_refused(run: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError, match="another run: lr differ"):
        train_tiny(tiny_checkpoint, run, lr=2e-2)
    with pytest.raises(InputError, match="made differently: sampling changed"):
        score_tiny(run, max_new_tokens=9)
    with pytest.raises(InputError, match="another model's training"):
        score_tiny(tiny_checkpoint, setting="refusal", out=run)


def test_splits_and_probes_add_to_a_run(run: Path, tmp_path: Path) -> None:
    path = score_tiny(run, probes="on-topic", out=tmp_path / "parts")
    score_tiny(run, probes="off-topic", out=path)
    score_tiny(run, probes="on-topic,off-topic", split="val", out=path)
    scores = json.loads((path / "scores.json").read_text())
    assert {(p["probe"], p["split"]) for p in scores["probes"]} == {
        (p, s) for p in ("on-topic", "off-topic") for s in ("test", "val")
    }
    assert set(scores["values"]) == {"on-topic/test", "off-topic/test", "on-topic/val", "off-topic/val"}


def test_the_patched_arm_has_a_folder_and_keys_of_its_own(run: Path, tmp_path: Path) -> None:
    settings = {"model": str(run), "limit": 5, "max_new_tokens": 8, "device": "cpu", "out": tmp_path / "patched"}
    path = patch(PatchConfig(**settings))
    keys = {c["key"] for c in lines(path / "completions.jsonl")}
    assert len(keys) == 10 and not keys & {c["key"] for c in lines(run / "completions.jsonl")}
    assert json.loads((path / "scores.json").read_text())["arm"] == "prefix from the initial model"
    labels = [row.method for row in read_rows([path, run])]
    assert labels == ["treft (lambda 10)", "treft (lambda 10) + prefix from the initial model"]


def test_an_adapter_of_another_base_is_refused(run: Path, own_copy: Path) -> None:
    config = json.loads((own_copy / "config.json").read_text())
    config["rope_theta"] = 12345.0
    config.get("rope_parameters", {})["rope_theta"] = 12345.0
    (own_copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="another base"):
        models.resolve(str(own_copy), adapter=run / "train" / "adapter")


def test_a_changed_template_is_refused_unless_allowed(run: Path) -> None:
    with pytest.raises(InputError, match="not the one this model was trained with"):
        score_tiny(run, system="You are a pirate.", out=run.parent / "pirate")
    path = score_tiny(run, system="You are a pirate.", allow_prefix_change=True, out=run.parent / "pirate")
    assert path.exists()


def test_full_finetuning_gives_a_checkpoint_that_scores(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = train_tiny(tiny_checkpoint, tmp_path / "full", full=True, lr=1e-3)
    assert (path / "train" / "checkpoint" / "model.safetensors").is_file()
    assert (score_tiny(path) / "scores.json").is_file()
    # Moved elsewhere it still knows its setting and template.
    source = models.resolve(str(path / "train" / "checkpoint"))
    assert source.setting == "refusal" and source.fingerprint
    patched = patch(PatchConfig(model=str(path), limit=2, max_new_tokens=4, device="cpu", out=tmp_path / "patched"))
    assert json.loads((patched / "scores.json").read_text())["arm"] == "prefix from the initial model"
    with pytest.raises(InputError, match="nobody knows which model this was made from"):
        patch(PatchConfig(model=str(tiny_checkpoint), setting="refusal"))


def test_a_base_model_is_scored_with_a_setting(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = score_tiny(tiny_checkpoint, setting="tool-use", out=tmp_path / "base")
    assert [row.method for row in read_rows([path])] == ["initial model"]
    with pytest.raises(InputError, match="--setting"):
        score_tiny(tiny_checkpoint)
