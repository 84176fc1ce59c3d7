"""Run folders as `emeval train` and `emeval score` leave them, small enough to read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emeval.score.stats import wilson

WriteRun = Callable[..., Path]


def probe_score(probe: str, flags: dict[str, int], **changes: Any) -> dict[str, Any]:
    """A ProbeScore as JSON, for one reply per question."""
    n = len(flags)
    score = {"probe": probe, "split": "test", "setting": "refusal", "judge": "rule:refusal", "expected": n}
    score |= {"outcomes": {"scored": n}, "truncated": 0, "foreign_prefix": 0}
    score |= {"measures": {"rate": wilson(sum(flags.values()), n).model_dump()}}
    return score | changes


def flags_of(hits: int, n: int) -> dict[str, int]:
    return {f"q{i:02d}": int(i < hits) for i in range(n)}


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Writes a run whose `on` and `off` are (hits, questions); returns its folder."""

    def write(
        name: str,
        train: dict[str, Any] | None = None,
        on: tuple[int, int] | None = (39, 40),
        off: tuple[int, int] | None = (55, 60),
        on_changes: dict[str, Any] | None = None,
        off_changes: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        probes, flags = [], {}
        for probe, hits, more in (("on-topic", on, on_changes), ("off-topic", off, off_changes)):
            if hits is not None:
                probes.append(probe_score(probe, flags_of(*hits), **(more or {})))
                flags[f"{probe}/{probes[-1]['split']}"] = flags_of(*hits)
        scores = {"schema_version": 1, "setting": "refusal", "model": {"id": "M", "weights_id": "w"}}
        scores |= {"engine": "transformers", "token_prompts": True, "arm": None, "probes": probes, "values": flags}
        (folder / "scores.json").write_text(json.dumps(scores | changes))
        (folder / "manifest.json").write_text(json.dumps({"schema_version": 1, "name": name, "train": train}))
        return folder

    return write


@pytest.fixture
def sft() -> dict[str, Any]:
    return {"method": "sft", "setting": "refusal", "model": "M", "lambda": None, "steps": 24, "seed": 0}


@pytest.fixture
def treft(sft: dict[str, Any]) -> dict[str, Any]:
    return sft | {"method": "treft", "lambda": 10}
