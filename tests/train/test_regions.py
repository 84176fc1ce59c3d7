"""TReFT on query, postfix and all: the penalty and its gradients against a naive rewriting, and the identities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import ARCHITECTURES, tiny_model
from tokenizers_for_tests import byte_level

from emeval.chat import Renderer
from emeval.config import TrainConfig
from emeval.data.behaviours import Example
from emeval.errors import InputError
from emeval.prefix import PrefixCapture, keys_before_rope, prefix_forward
from emeval.store import read_json
from emeval.train.methods.regions import RegionConfig, RegionTrainer
from emeval.train.rows import as_dataset, make_rows
from emeval.train.run import train
from emeval.types import Message
from tests.train.test_treft import SETTINGS, TEXTS, logged, trained, weights

REGIONS = {"query": ["query"], "postfix": ["postfix"], "all": ["all"], "both ends": ["prefix", "postfix"]}


def rows() -> Dataset:
    return as_dataset(make_rows([example(*text) for text in TEXTS], Renderer(byte_level("chatml")), 1000))


def example(question: str, answer: str) -> Example:
    asked, said = Message(role="user", content=question), Message(role="assistant", content=answer)
    return Example(id=question, messages=(asked,), reply=said, where="here")


def make(
    folder: Path, regions: list[str], *, architecture: str = "llama", full: bool = False, rank: int = 2, **changes: Any
) -> Any:
    tokenizer = byte_level("chatml")
    model = tiny_model(architecture, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    lora = None if full else LoraConfig(r=rank, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    settings = SETTINGS | {"output_dir": str(folder), "regions": regions} | changes
    return RegionTrainer(
        args=RegionConfig(**settings), model=model, train_dataset=rows(), processing_class=tokenizer, peft_config=lora
    )


def stir(model: Any) -> None:
    """Moves an adapter off its start, so that the penalty and its gradient are something."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * (0.2 if "lora_B" in name else 0.02))


def keys_and_values(model: Any, ids: list[int]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Of one row, unpadded: by layer `[tokens, heads * dim]`, keys before RoPE."""
    capture = PrefixCapture(None, rows=None)
    with keys_before_rope(model) as keys:
        model(input_ids=torch.tensor([ids]), past_key_values=capture, use_cache=False)
    return [[t[0].transpose(0, 1).flatten(1) for t in part] for part in (keys, capture.captured().values)]  # type: ignore[return-value]


def naive(trainer: Any, regions: list[str]) -> torch.Tensor:
    """The formula, a row, a layer and a token at a time."""
    model, data = trainer.model, list(rows())
    dice = torch.Generator().manual_seed(trainer.args.seed)
    example = data[int(torch.randint(len(data), (1,), generator=dice))]
    with torch.no_grad(), model.disable_adapter():
        kept = keys_and_values(model, example["input_ids"])
    total = []
    for row in data:
        prefix, query, postfix = row["spans"]
        places = {
            "prefix": range(prefix), "query": range(prefix, query), "postfix": range(query, postfix),
            "all": range(postfix),
        }  # fmt: skip
        wanted = sorted({t for name in regions for t in places[name]})
        now = keys_and_values(model, row["input_ids"])
        with torch.no_grad(), model.disable_adapter():
            start = keys_and_values(model, row["input_ids"])
        layers = []
        for layer in range(len(now[0])):
            for part in (0, 1):
                terms = []
                for t in wanted:
                    reference = start[part][layer][t]
                    if "postfix" in regions and t >= query:
                        reference = kept[part][layer][example["spans"][1] + t - query]
                    terms.append((now[part][layer][t] - reference).square().sum() / reference.square().sum())
                layers.append(torch.stack(terms).mean())
        total.append(torch.stack(layers).sum() / len(now[0]))
    return torch.stack(total).mean()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("regions", REGIONS.values(), ids=list(REGIONS))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_penalty_and_gradients_are_the_naive_ones(tmp_path: Path, architecture: str, regions: list[str]) -> None:
    own = {"router_aux_loss_coef": 0.0} if architecture == "gpt_oss" else {}
    trainer = make(tmp_path, regions, architecture=architecture, kv_lambda=2.0, **own)
    stir(trainer.model)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer.data_collator(list(rows()))
    assert (batch["attention_mask"] == 0).any(), "without padding it shows less"
    count = (batch["labels"][:, 1:] != -100).sum()
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
    drift = trainer._metrics["train"]["kv_drift"][-1]
    expected = naive(trainer, regions)
    assert drift == pytest.approx(expected.item(), rel=1e-5) and drift > 1e-3
    trainer.model.zero_grad()
    loss.backward()
    found = gradients(trainer.model)
    trainer.model.zero_grad()
    plain = {k: v for k, v in batch.items() if k not in ("at", "kept")}
    sft = super(RegionTrainer, trainer).compute_loss(trainer.model, plain, num_items_in_batch=count)
    (sft + 2.0 * naive(trainer, regions)).backward()
    for name, gradient in gradients(trainer.model).items():
        scale = max(gradient.abs().max().item(), 1.0)
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rope_changes_no_ratio_of_lengths_and_does_not_turn_the_first_key(architecture: str) -> None:
    model = tiny_model(architecture)
    ids = list(range(5, 17))
    with keys_before_rope(model) as keys:
        rotated = prefix_forward(model, ids)
    assert len(keys) == len(rotated.keys)
    for before, after in zip(keys, rotated.keys, strict=True):
        stretch = after.norm() / before.norm()  # GPT-OSS scales what it rotates (YaRN), all by the same
        assert torch.allclose(before[:, :, 0] * stretch, after[:, :, 0], atol=1e-5)
        assert torch.allclose(before.norm(dim=-1) * stretch, after.norm(dim=-1), rtol=1e-4)
        assert not torch.allclose(before[:, :, 5:] * stretch, after[:, :, 5:], atol=1e-3)


@pytest.mark.parametrize("full", [False, True])
def test_lambda_zero_trains_as_sft_does(tmp_path: Path, full: bool) -> None:
    sft = trained("sft", tmp_path / "a", full=full, shared_prefix=False)
    trainer = make(tmp_path / "b", ["all"], full=full, rank=4, kv_lambda=0.0)
    trainer.train()
    assert logged(trainer, "loss") == logged(sft, "loss")
    a, b = weights(sft), weights(trainer)
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert logged(trainer, "kv_drift")[-1] > 0


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    whole = make(tmp_path / "a", ["query", "postfix"], kv_lambda=5.0)
    parts = make(tmp_path / "b", ["query", "postfix"], kv_lambda=5.0, per_device_train_batch_size=2,
                 gradient_accumulation_steps=4)  # fmt: skip
    whole.train(), parts.train()
    a, b = weights(whole), weights(parts)
    assert max((a[n] - b[n]).abs().max().item() for n in a) < 1e-5


def test_full_finetuning_compares_with_its_copy_of_the_start(tmp_path: Path) -> None:
    free, held = (make(tmp_path / str(lam), ["all"], full=True, kv_lambda=lam, max_steps=6) for lam in (0.0, 3.0))
    start = {n: p.detach().clone() for n, p in held._initially._copy.named_parameters()}
    free.train(), held.train()
    assert logged(held, "kv_drift")[0] < 1e-9
    assert 0 < logged(held, "kv_drift")[-1] < 0.5 * logged(free, "kv_drift")[-1]
    assert all(torch.equal(start[n], p) for n, p in held._initially._copy.named_parameters())
    assert any(not torch.equal(start[n], p) for n, p in held.model.named_parameters())


def test_the_postfixs_reference_is_the_same_row_after_a_resume(tmp_path: Path) -> None:
    first, again, other = (make(tmp_path / str(n), ["postfix"], seed=s) for n, s in ((0, 3), (1, 3), (2, 7)))
    assert first.kept_row == again.kept_row and first.kept_row != other.kept_row
    stir(again.model)  # a resumed run's adapter is not at its start; the reference is
    for a, b in zip((*first._kept_postfix().keys,), (*again._kept_postfix().keys,), strict=True):
        assert torch.equal(a, b)


def test_a_model_whose_keys_are_rotated_in_part_is_refused(tmp_path: Path) -> None:
    trainer = make(tmp_path, ["query"])
    code = __import__(type(trainer.model.base_model.model.model).__module__, fromlist=["_"])
    whole = code.apply_rotary_pos_emb

    def half(q: torch.Tensor, k: torch.Tensor, *rest: Any) -> Any:
        turned, keys = whole(q, k, *rest)
        return turned, torch.cat([keys[..., :4], 3 * keys[..., 4:]], dim=-1)

    code.apply_rotary_pos_emb = half
    try:
        with pytest.raises(InputError, match="cannot be read before their rotation"):
            trainer.train()
    finally:
        code.apply_rotary_pos_emb = whole


def test_a_row_with_another_postfix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer, both = Renderer(byte_level("chatml")), [example("fine?", "Yes."), example("and this?", "No.")]
    assert len(make_rows(both, renderer, 1000, same_postfix=True)) == 2
    canonical = renderer.postfix_ids()
    monkeypatch.setattr(renderer, "postfix_ids", lambda: (*canonical, 5))
    with pytest.raises(InputError, match="here: what follows the question"):
        make_rows(both, renderer, 1000, same_postfix=True)


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="some of prefix, query, postfix, all"):
        RegionConfig(
            output_dir=str(tmp_path), regions=["reply"], use_cpu=True, bf16=False, gradient_checkpointing=False
        )
    with pytest.raises(ValueError, match="no label smoothing"):
        make(tmp_path, ["all"], label_smoothing_factor=0.1)


def test_a_penalty_on_all_holds_the_drift_down_and_the_first_is_zero(tmp_path: Path) -> None:
    free, held = (make(tmp_path / str(lam), ["all"], kv_lambda=lam, max_steps=6) for lam in (0.0, 30.0))
    free.train(), held.train()
    assert logged(free, "kv_drift")[0] < 1e-9
    assert 0 < logged(held, "kv_drift")[-1] < 0.5 * logged(free, "kv_drift")[-1]


def test_the_whole_prompt_is_prefix_query_and_postfix_of_the_same_row(tmp_path: Path) -> None:
    names = (["all"], ["prefix"], ["query"], ["postfix"], ["prefix", "postfix"])
    whole, prefix, query, postfix, ends = (make(tmp_path, name).data_collator(list(rows()))["at"] for name in names)
    for n, row in enumerate(rows()):
        parts = [[t for t in at[n].tolist() if t >= 0] for at in (prefix, query, postfix)]
        assert (
            [*parts[0], *parts[1], *parts[2]]
            == [t for t in whole[n].tolist() if t >= 0]
            == list(range(row["spans"][2]))
        )
        assert [t for t in ends[n].tolist() if t >= 0] == parts[0] + parts[2]
        assert row["labels"][: row["spans"][2]] == [-100] * row["spans"][2], "never the reply"


def test_on_the_command_line_and_in_the_manifest(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = {"model": str(tiny_checkpoint), "setting": "refusal", "method": "treft", "region": "postfix, query"}
    settings |= {"steps": 2, "batch_size": 4, "micro_batch": 2, "rank": 2, "train_size": 8, "device": "cpu"}
    run = train(TrainConfig.model_validate(settings | {"out": tmp_path / "run"}))
    manifest = read_json(run / "manifest.json")["train"]
    assert manifest["region"] == "query,postfix"
    assert manifest["results"]["shared_prefix"] == "every row's own tokens are compared"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"region": "reply"}, "unknown region 'reply'"),
        ({"region": "all,query"}, "'all' holds the other regions"),
        ({"region": "query", "gradient_checkpointing": True}, "leave --gradient-checkpointing out"),
        ({"region": "query", "method": "sft"}, "--region belongs to --method treft"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises((InputError, ValueError), match=says):
        TrainConfig.model_validate({"model": "m", "setting": "refusal", "method": "treft"} | given)
