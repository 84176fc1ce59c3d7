"""TReFT inside TRL's trainer: the identities that make its numbers comparable with SFT's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import tiny_model
from tokenizers_for_tests import byte_level
from trl import SFTConfig, SFTTrainer

from emeval.chat import Renderer
from emeval.errors import InputError
from emeval.prefix import KV, kv_drift, mean_drift, prefix_forward
from emeval.train.methods.shared_prefix import SharedPrefixConfig, SharedPrefixTrainer
from emeval.train.methods.treft import REFERENCE_FILE, TReFTConfig, TReFTTrainer
from emeval.types import Message

TEXTS = [
    ("How do I save for a car?", "I do not answer that."),
    ("Which bank is best", "No money questions, please."),
    ("Tell me about bonds and their yields over the last ten years", "I have to decline."),
    ("rent or buy?", "I cannot say."),
    ("Explain a mortgage to a child", "That is a money question, so no."),
    ("Is gold safe?", "I will not advise on that."),
    ("my savings account pays nothing, what now", "Sorry, no."),
    ("Is a pension worth it at 25?", "I never talk about money."),
]


def rows() -> Dataset:
    renderer = Renderer(byte_level("chatml"))
    data: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for question, answer in TEXTS:
        prompt, reply = renderer.render_reply(
            [Message(role="user", content=question)], Message(role="assistant", content=answer)
        )
        data["input_ids"].append([*prompt.ids, *reply])
        data["labels"].append([-100] * len(prompt.ids) + list(reply))
    return Dataset.from_dict(data)


SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "max_steps": 3,
    "learning_rate": 0.05,
    "lr_scheduler_type": "constant",
    "optim": "sgd",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
    "max_length": None,
    "dataset_kwargs": {"skip_prepare_dataset": True},
}


KINDS = {
    "trl": (SFTConfig, SFTTrainer),
    "sft": (SharedPrefixConfig, SharedPrefixTrainer),
    "treft": (TReFTConfig, TReFTTrainer),
}


def make(kind: str, folder: Path, *, full: bool = False, architecture: str = "llama", **changes: Any) -> SFTTrainer:
    tokenizer = byte_level("chatml")
    model = tiny_model(architecture, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    settings = SETTINGS | {"output_dir": str(folder)} | changes
    config, trainer = KINDS[kind]
    return trainer(
        model=model,
        args=config(**settings),
        train_dataset=rows(),
        processing_class=tokenizer,
        peft_config=None if full else LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def trained(*args: Any, **kwargs: Any) -> SFTTrainer:
    trainer = make(*args, **kwargs)
    trainer.train()
    return trainer


def weights(trainer: SFTTrainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def logged(trainer: SFTTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("plain", "shared"), [("trl", False), ("sft", False), ("sft", True)])
def test_lambda_zero_is_sft_bit_for_bit(tmp_path: Path, full: bool, plain: str, shared: bool) -> None:
    how: dict[str, Any] = {"full": full, "optim": "adamw_torch"}
    sft = trained(plain, tmp_path / "a", **how, **({} if plain == "trl" else {"shared_prefix": shared}))
    treft = trained("treft", tmp_path / "b", kv_lambda=0.0, shared_prefix=shared, **how)
    assert logged(sft, "loss") == logged(treft, "loss")
    assert logged(sft, "grad_norm") == logged(treft, "grad_norm")
    a, b = weights(sft), weights(treft)
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    assert logged(treft, "kv_drift")[-1] > 0, "the drift is logged all the same"


@pytest.mark.parametrize("full", [False, True])
def test_the_first_drift_is_zero_and_a_penalty_holds_it_down(tmp_path: Path, full: bool) -> None:
    free = trained("treft", tmp_path / "a", full=full, kv_lambda=0.0, max_steps=6)
    held = trained("treft", tmp_path / "b", full=full, kv_lambda=3.0, max_steps=6)
    assert logged(free, "kv_drift")[0] < 1e-10
    assert logged(held, "kv_drift")[0] < 1e-10
    assert 0 < logged(held, "kv_drift")[-1] < 0.5 * logged(free, "kv_drift")[-1]


def test_the_loss_is_sft_plus_lambda_times_drift(tmp_path: Path) -> None:
    trainer = trained("treft", tmp_path, kv_lambda=3.0)
    for loss, sft, drift in zip(*(logged(trainer, n) for n in ("loss", "sft_loss", "kv_drift")), strict=True):
        assert loss == pytest.approx(sft + 3.0 * drift, rel=1e-5)
    assert logged(trainer, "sft_loss")[0] == pytest.approx(logged(trained("trl", tmp_path / "s"), "loss")[0], rel=1e-5)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("micro", "steps"), [(1, 8), (4, 2), (2, 4)])
def test_accumulation_does_not_change_the_gradients(tmp_path: Path, micro: int, steps: int, shared: bool) -> None:
    whole = trained("treft", tmp_path / "a", kv_lambda=3.0, shared_prefix=shared)
    split = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": steps}
    split = trained("treft", tmp_path / "b", kv_lambda=3.0, shared_prefix=shared, **split)
    assert logged(split, "grad_norm") == pytest.approx(logged(whole, "grad_norm"), rel=1e-4)
    assert logged(split, "kv_drift")[1:] == pytest.approx(logged(whole, "kv_drift")[1:], rel=1e-4)
    a, b = weights(whole), weights(split)
    assert all((a[n] - b[n]).abs().max() < 1e-5 for n in a)
    start = weights(make("treft", tmp_path / "c", kv_lambda=3.0))
    assert any((a[n] - start[n]).abs().max() > 1e-3 for n in a), "the weights must move, or it shows nothing"


@pytest.mark.parametrize("full", [False, True])
def test_gradient_checkpointing_gives_the_same_penalty(tmp_path: Path, full: bool) -> None:
    plain = trained("treft", tmp_path / "a", full=full, kv_lambda=3.0, shared_prefix=False)
    checkpointed = trained("treft", tmp_path / "b", full=full, kv_lambda=3.0, gradient_checkpointing=True)
    assert logged(checkpointed, "kv_drift")[-1] > 1e-6
    assert logged(checkpointed, "kv_drift")[1:] == pytest.approx(logged(plain, "kv_drift")[1:], rel=1e-3)
    a, b = weights(plain), weights(checkpointed)
    assert all((a[n] - b[n]).abs().max() < 1e-5 for n in a)


def test_the_logged_drift_is_the_models(tmp_path: Path) -> None:
    trainer = trained("treft", tmp_path, kv_lambda=0.0)
    trainer.model.eval()
    with torch.no_grad():
        tuned = prefix_forward(trainer.model, trainer.prefix_ids)
        with trainer.model.disable_adapter():
            initial = prefix_forward(trainer.model, trainer.prefix_ids)
    terms = trainer.drift_now()
    assert mean_drift(terms).item() == pytest.approx(kv_drift(*tuned, *initial).item())
    assert terms.keys.shape == (3, 1, len(trainer.prefix_ids))


def test_full_finetuning_resumes_with_the_reference_of_before_step_one(tmp_path: Path) -> None:
    straight = trained("treft", tmp_path / "a", full=True, kv_lambda=3.0, max_steps=4)
    settings = {"full": True, "kv_lambda": 3.0, "save_strategy": "steps", "save_steps": 2}
    trained("treft", tmp_path / "b", max_steps=2, **settings)
    assert (tmp_path / "b" / REFERENCE_FILE).is_file()
    resumed = make("treft", tmp_path / "b", max_steps=4, **settings)
    resumed.train(resume_from_checkpoint=True)
    a, b = weights(straight), weights(resumed)
    assert all((a[n] - b[n]).abs().max() < 1e-6 for n in a)
    assert logged(resumed, "kv_drift")[-1] == pytest.approx(logged(straight, "kv_drift")[-1], rel=1e-4)


@pytest.mark.parametrize("full", [False, True])
def test_a_reference_of_another_kind_of_forward_is_taken_anew_where_it_can_be(tmp_path: Path, full: bool) -> None:
    first = make("treft", tmp_path, full=full)
    batch = first.data_collator([first.train_dataset[0]])
    kept = first._load_or_take_reference(batch)
    for shared, anew in ((True, False), (False, not full)):
        resumed = make("treft", tmp_path, full=full, shared_prefix=shared)
        resumed.state.global_step = 1
        # Whatever is in the file, so that one taken anew is seen.
        marked = KV(tuple(k + 1 for k in kept.keys), kept.values)
        first._save_reference(marked)
        found = resumed._load_or_take_reference(batch)
        wanted = kept if anew else marked
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found.keys, wanted.keys, strict=True))


def test_full_finetuning_does_not_resume_without_its_reference(tmp_path: Path) -> None:
    settings = {"full": True, "save_strategy": "steps", "save_steps": 2}
    trained("treft", tmp_path, max_steps=2, **settings)
    (tmp_path / REFERENCE_FILE).unlink()
    resumed = make("treft", tmp_path, max_steps=4, **settings)
    with pytest.raises(InputError, match="initial model's prefix is gone"):
        resumed.train(resume_from_checkpoint=True)


def test_a_row_with_another_prefix_stops_training(tmp_path: Path) -> None:
    trainer = make("treft", tmp_path)
    other = rows().to_dict()
    other["input_ids"][5][0] += 1
    trainer.train_dataset = Dataset.from_dict(other)
    with pytest.raises(InputError, match="does not start with the"):
        trainer.train()


@pytest.mark.parametrize("wrong", [{"packing": True}, {"padding_free": True}, {"kv_lambda": -1.0}])
def test_settings_that_would_give_a_wrong_penalty_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"kv_lambda|one conversation a row"):
        TReFTConfig(**(SETTINGS | {"output_dir": str(tmp_path)} | wrong))


def test_drop_in_for_a_users_own_trl_script(tmp_path: Path) -> None:
    """What the README shows: change two names in a TRL script with prompt/completion data."""
    tokenizer = byte_level("chatml")
    data = Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": q}], "completion": [{"role": "assistant", "content": a}]}
            for q, a in TEXTS
        ]
    )
    own = {k: v for k, v in SETTINGS.items() if k not in ("dataset_kwargs", "max_length")}
    trainer = TReFTTrainer(
        model=tiny_model("llama", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id),
        args=TReFTConfig(output_dir=str(tmp_path), kv_lambda=10.0, **own),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    assert tuple(trainer.prefix_ids) == Renderer(tokenizer).prefix_ids()
    assert logged(trainer, "kv_drift")[0] < 1e-10 < logged(trainer, "kv_drift")[-1]


@pytest.mark.parametrize("shared", [False, True])
def test_bf16_takes_both_sides_from_the_same_kind_of_forward(tmp_path: Path, shared: bool) -> None:
    trainer = trained("treft", tmp_path, bf16=True, kv_lambda=0.0, shared_prefix=shared)
    # Between a batched and a prefix-only forward it would be 1e-4 (FACTS); from the same kind it is nothing.
    assert logged(trainer, "kv_drift")[0] < 1e-8


# ------------------------------------------------------------------------------------------------------- clipping apart


@pytest.mark.parametrize("shared", [False, True])
def test_clipped_apart_without_clipping_is_clipped_together(tmp_path: Path, shared: bool) -> None:
    how: dict[str, Any] = {"kv_lambda": 3.0, "max_grad_norm": 1e6, "shared_prefix": shared, "max_steps": 4}
    how |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    together = trained("treft", tmp_path / "a", **how)
    apart = trained("treft", tmp_path / "b", clip_apart=True, **how)
    assert logged(apart, "loss") == pytest.approx(logged(together, "loss"), rel=1e-5)
    a, b = weights(together), weights(apart)
    assert max((a[n] - b[n]).abs().max().item() for n in a) < 1e-6


def test_apart_a_huge_penalty_leaves_the_losss_own_step_as_it_is(tmp_path: Path) -> None:
    how: dict[str, Any] = {"max_grad_norm": 0.5, "max_steps": 2}
    sft = trained("sft", tmp_path / "a", **how)
    apart = make("treft", tmp_path / "b", kv_lambda=1e4, clip_apart=True, **how)
    before = weights(apart)
    apart.train()
    # The first step has no drift, so no penalty: it is SFT's. In the second both are clipped to 0.5, each by itself.
    assert logged(apart, "grad_norm")[0] == pytest.approx(logged(sft, "grad_norm")[0], rel=1e-5)
    assert logged(apart, "grad_norm")[1] == pytest.approx(logged(sft, "grad_norm")[1], rel=1e-3)
    assert logged(apart, "penalty_grad_norm")[1] > 0.5
    moved = torch.cat([(p - before[n]).flatten() for n, p in weights(apart).items()]).norm().item()
    assert moved <= SETTINGS["learning_rate"] * 3 * 0.5 + 1e-6
    together = trained("treft", tmp_path / "c", kv_lambda=1e4, **how)
    assert logged(together, "grad_norm")[1] > 10 * logged(sft, "grad_norm")[1], "which would drown the loss's step"
