"""The drift map: the numbers that the formula gives, cosines of known changes, table, characters and figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from emeval.chat import Renderer
from emeval.config import DriftConfig, TrainConfig
from emeval.errors import InputError
from emeval.intervene.drift import drift, save
from emeval.models import load_model, load_tokenizer, placement, resolve
from emeval.prefix import prefix_forward
from emeval.table.drift import DriftMap, drift_lines, drift_plot, drift_table
from emeval.train.run import train


def measured(model: Path, **changes: Any) -> DriftMap:
    return drift(DriftConfig(model=str(model), device="cpu", **changes))


def test_it_is_the_relative_squared_distance_of_each_token(tuned: Path) -> None:
    found = measured(tuned)
    source = resolve(str(tuned))
    model = load_model(source, placement("cpu"))
    ids = Renderer(load_tokenizer(source)).prefix_ids()
    with torch.no_grad():
        now = prefix_forward(model, ids)
        with model.disable_adapter():
            start = prefix_forward(model, ids)
    assert (len(found.keys), len(found.keys[0])) == (3, len(ids)) == (len(found.values), len(found.tokens))
    for part in ("keys", "values"):
        for layer, (a, b) in enumerate(zip(getattr(now, part), getattr(start, part), strict=True)):
            for token in range(len(ids)):
                expected = (a[0, :, token] - b[0, :, token]).square().sum() / b[0, :, token].square().sum()
                assert getattr(found, part)[layer][token] == pytest.approx(expected.item(), rel=1e-4, abs=1e-9)
    each = [sum(map(sum, grid)) / (3 * len(ids)) for grid in (found.keys, found.values)]
    assert found.total == pytest.approx(sum(each), rel=1e-5) and found.total > 0


def test_cosines_are_one_with_itself_and_of_the_changes_otherwise(
    tuned: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    same = measured(tuned, against=str(tuned))
    assert set(same.cosines) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert all(c == pytest.approx(1.0, abs=1e-5) for layers in same.cosines.values() for c in layers)
    settings = {"setting": "refusal", "steps": 2, "batch_size": 2, "rank": 2, "train_size": 4, "seed": 3}
    other = train(TrainConfig(model=str(tiny_checkpoint), device="cpu", out=tmp_path / "other", **settings))
    found = measured(tuned, against=str(other))
    one, two = (load_model(resolve(str(m)), placement("cpu")) for m in (tuned, other))
    a, b = (
        m.get_base_model().model.layers[1].self_attn.v_proj.get_delta_weight("default").flatten() for m in (one, two)
    )
    assert found.cosines["v_proj"][1] == pytest.approx(
        torch.nn.functional.cosine_similarity(a, b, dim=0).item(), abs=1e-5
    )
    assert abs(found.cosines["v_proj"][1] or 0) < 0.99


def test_what_cannot_be_compared_is_refused(tuned: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError, match="two adapters are compared"):
        measured(tuned, against=str(tiny_checkpoint))
    with pytest.raises(InputError, match="nobody knows which model"):
        measured(tiny_checkpoint)


MAP = DriftMap(
    model="tuned", initial="base", tokens=("<s>", "user", "\n"), total=0.5, keys=((0.0, 0.1, 0.2), (0.4, 1e-5, 0.0)),
    values=((0.0, 0.0, 0.3), (1.0, 0.2, 0.1)), against="other", cosines={"k_proj": (0.5, None)},
)  # fmt: skip


def test_table_and_characters() -> None:
    table = drift_table(MAP)
    assert [cell.text for cell in table.rows[1]] == ["1", "0.133", "0.433", "0 '<s>'", "–"]
    assert table.records[0]["cosine_k_proj"] == 0.5 and table.records[1]["cosine_k_proj"] is None
    lines = drift_lines(MAP).splitlines()
    assert lines[1].startswith("   0 | ") and lines[2].count("@") == 1, "the largest has the darkest sign"
    flat = MAP.model_copy(update={"keys": ((0.0,),), "values": ((0.0,),)})
    assert "|" in drift_lines(flat)


def test_figures_are_the_same_bytes_each_time_and_everything_is_written(tmp_path: Path) -> None:
    written = save(MAP, tmp_path / "a")
    assert [path.name for path in written] == ["drift.svg", "drift.png"]
    save(MAP, tmp_path / "b")
    for name in ("drift.svg", "drift.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    kept = json.loads((tmp_path / "a" / "drift.json").read_text())
    assert kept["values"][1][0] == 1.0 and kept["schema_version"] == 1
    with pytest.raises(InputError, match=r"\.svg or a \.png"):
        drift_plot(MAP, tmp_path / "x.pdf")
