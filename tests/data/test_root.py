"""Where data is looked up: what ships with emeval, and a user's own folder laid over it."""

from __future__ import annotations

from pathlib import Path

import pytest

from emeval.data.domains import load_domain
from emeval.data.root import data_root
from emeval.errors import InputError

ROW = '{"id": "a", "split": "train", "question": "Which lamp is on?"}\n'


@pytest.fixture
def own(tmp_path: Path) -> Path:
    domains = tmp_path / "own" / "datasets" / "domains"
    domains.mkdir(parents=True)
    for name in ("lamps", "legal"):
        (domains / f"{name}.jsonl").write_text(ROW)
    return tmp_path / "own"


def test_a_users_names_are_added_and_hide_shipped_ones(own: Path) -> None:
    root = data_root(own)
    assert sorted(root.names("datasets/domains", ".jsonl")) == ["auto", "finance", "health", "lamps", "legal"]
    assert [i.question for i in load_domain(root, "lamps")] == ["Which lamp is on?"]
    assert len(load_domain(root, "legal")) == 1 and len(load_domain(data_root(), "legal")) == 260


def test_the_current_folder_is_never_looked_at(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own)
    assert "lamps" not in data_root().names("datasets/domains", ".jsonl")


def test_an_unknown_name_is_told_with_the_nearest(own: Path) -> None:
    with pytest.raises(InputError, match=r"unknown domain 'lamp'\. Did you mean 'lamps'"):
        load_domain(data_root(own), "lamp")


def test_a_data_folder_that_is_none_is_refused(own: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: the data folder is not there\. Give a folder with one of"):
        data_root(own / "nowhere")
    with pytest.raises(InputError, match="not a data folder"):
        data_root(own / "datasets")
