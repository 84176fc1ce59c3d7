"""The paper's recipes: every cell can be trained, flags win, and what the paper did not do is refused."""

from __future__ import annotations

import pytest

from emeval.config import TrainConfig
from emeval.data.files import load_yaml
from emeval.data.recipes import FILE, paper_model, paper_recipe
from emeval.data.root import data_root
from emeval.errors import InputError

NAMES = {
    "Qwen-2.5-7B": "Qwen/Qwen2.5-7B-Instruct",
    "Llama-3.1-8B": "meta-llama/Llama-3.1-8B-Instruct",
    "GPT-OSS-20B": "openai/gpt-oss-20b",
    "Qwen-2.5-32B": "Qwen/Qwen2.5-32B-Instruct",
    "Qwen-3-8B": "Qwen/Qwen3-8B",
    "Llama-3.2-1B": "meta-llama/Llama-3.2-1B-Instruct",
    "Qwen-2.5-3B": "Qwen/Qwen2.5-3B-Instruct",
}


def config(model: str, setting: str, method: str, **given: object) -> TrainConfig:
    return TrainConfig.load({"model": model, "setting": setting, "method": method, "recipe": "paper"} | given)


def test_every_cell_is_a_run_that_can_be_asked_for() -> None:
    recipes = load_yaml(data_root().shipped / FILE)["models"]
    assert recipes.keys() == NAMES.keys()
    cells = [
        (NAMES[m], m, method, setting)
        for m, r in recipes.items()
        for method in ("sft", "treft")
        for setting in r[method]
    ]
    assert len(cells) == 2 * (4 * 4 + 4 + 1 + 1 + 2 + 1)
    for name, theirs, method, setting in cells:
        found, cell = config(name, setting, method), recipes[theirs][method][setting]
        assert (found.lr, found.epochs, found.batch_size, found.micro_batch) == (cell[0], cell[1], 16, 2)
        assert len(cell) == 2 or found.lambda_ == cell[2]


@pytest.mark.parametrize(
    ("model", "setting", "method", "expected"),
    [
        ("Qwen-2.5-7B", "auto", "sft", {"lr": 3e-5, "epochs": 2, "rank": 8, "alpha": 16}),
        ("Qwen-2.5-7B", "finance", "treft", {"lr": 5e-6, "epochs": 1, "lambda_": 10, "region": "prefix"}),
        ("Llama-3.1-8B", "abstention", "treft", {"lr": 1e-5, "epochs": 2, "lambda_": 30}),
        ("Qwen-3-8B", "health", "treft", {"rank": 32, "alpha": 64, "region": "postfix", "lambda_": 1}),
        ("Llama-3.2-1B", "finance", "sft", {"full": True}),
        ("GPT-OSS-20B", "legal", "interleave", {"lr": 2e-5, "epochs": 1}),
        ("Qwen-2.5-32B", "finance", "kl-retain", {"lr": 2e-5, "epochs": 1, "lambda_": 50, "kl_norm": "released"}),
    ],
)
def test_figures_of_the_paper(model: str, setting: str, method: str, expected: dict[str, object]) -> None:
    found = config(NAMES[model], setting, method)
    assert {name: getattr(found, name) for name in expected} == expected


def test_what_is_given_wins() -> None:
    found = config("Qwen/Qwen2.5-7B-Instruct", "auto", "treft", rank=4, lambda_=7.0)
    assert (found.rank, found.lambda_, found.lr) == (4, 7.0, 2e-5)


@pytest.mark.parametrize(
    ("model", "setting", "says"),
    [
        ("smollm2-135m", "finance", "no settings for 'smollm2-135m'"),
        ("Qwen/Qwen2.5-7B-Instruct", "abstention", "no settings for Qwen-2.5-7B, treft and 'abstention'"),
    ],
)
def test_what_the_paper_did_not_do_is_refused(model: str, setting: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        config(model, setting, "treft")


def test_a_variant_is_another_model() -> None:
    assert all(paper_model(name) == theirs for theirs, name in NAMES.items())
    assert paper_model("/models/qwen2.5-7b-instruct") == "Qwen-2.5-7B"
    for other in ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-72B-Instruct", "x/Qwen2.5-7B-Instruct-1M", "smollm2-135m", ""):
        assert paper_model(other) is None
    assert paper_recipe("x/Qwen3-8B", "auto", "sft")["epochs"] == 2
