"""What is written is what is read: kills, torn lines, odd characters, other releases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emeval.errors import InputError
from emeval.store import Jsonl, Run, read_json, sha256_file, sha256_of, slug, write_atomic, write_json
from emeval.types import Completion, Judgement

REPOSITORY = Path(__file__).parent.parent


def completion(n: int, text: str = "Yes.") -> Completion:
    fields = {"key": f"k{n}", "probe": "p", "split": "test", "question_id": f"q{n}", "question": "?", "text": text}
    return Completion.model_validate(fields | {"prompt_tokens": 5, "truncated": False, "token_ids": [1, 2]})


def judgement(value: float) -> Judgement:
    fields = {"key": "j", "completion_key": "k", "probe": "p", "split": "test", "question_id": "q", "judge": "x"}
    return Judgement.model_validate(fields | {"outcome": "scored", "value": value})


def file(tmp_path: Path) -> Jsonl[Completion]:
    return Jsonl(tmp_path / "run" / "completions.jsonl", Completion)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"], **environment}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)


# -------------------------------------------------------------------------------------------------------------- JSONL


def test_what_is_appended_is_read_back_in_order_from_a_folder_made_when_needed(tmp_path: Path) -> None:
    assert file(tmp_path).read() == [] and not (tmp_path / "run").exists()
    records = [completion(n) for n in range(5)]
    out = file(tmp_path)
    for record in records:
        out.append(record)
    out.close()
    assert file(tmp_path).read() == records


def test_a_line_is_with_the_operating_system_before_append_returns(tmp_path: Path) -> None:
    out = file(tmp_path)
    out.append(completion(1))
    assert file(tmp_path).read() == [completion(1)]  # neither flushed nor closed


def test_a_killed_process_loses_nothing_it_appended(tmp_path: Path) -> None:
    code = f"""
import os, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from pathlib import Path
from tests.test_store import completion, file
out = file(Path({str(tmp_path)!r}))
for n in range(20):
    out.append(completion(n))
os.kill(os.getpid(), 9)
"""
    assert python(code).returncode == -9
    assert file(tmp_path).read() == [completion(n) for n in range(20)]


@pytest.mark.parametrize("torn", ['{"key": "k9", "text": "Y', "{", "\0\0\0", completion(9).model_dump_json()])
def test_a_torn_last_line_is_ignored_and_cut_before_the_next_append(tmp_path: Path, torn: str) -> None:
    out = file(tmp_path)
    out.append(completion(1))
    out.close()
    with out.path.open("a") as f:
        f.write(torn)
    assert file(tmp_path).read() == [completion(1)]
    assert out.path.read_text().endswith(torn), "reading changes nothing"
    again = file(tmp_path)
    again.append(completion(2))
    assert file(tmp_path).read() == [completion(1), completion(2)]


BROKEN = {
    "torn": ('{"key": "k9", "te', "Unterminated string"),
    "another record": ('{"a": 1}', "Field required"),
    "an unknown field": (json.dumps(json.loads(completion(1).model_dump_json()) | {"new": 1}), "Extra inputs"),
    "no object": ("[1]", "Input should be a valid dictionary"),
    "not UTF-8": ("caf\xe9", "codec can't decode"),
    "NaN": ('{"key": NaN}', "NaN is no JSON"),
    "too deep": ("[" * 100_000, "recursion"),
}


@pytest.mark.parametrize(("line", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_line_before_the_last_is_bad_input_named_by_its_line(tmp_path: Path, line: str, reason: str) -> None:
    out = file(tmp_path)
    out.append(completion(1))
    with out.path.open("ab") as f:
        f.write(line.encode("latin-1") + b"\n")
    out.append(completion(2))
    with pytest.raises(InputError) as e:
        file(tmp_path).read()
    assert e.value.where == f"{out.path}:2" and reason in e.value.what and "\n" not in str(e.value)


def test_a_record_of_another_release_is_refused_and_not_guessed_at(tmp_path: Path) -> None:
    path = file(tmp_path).path
    path.parent.mkdir()
    path.write_text('{"schema_version": 2, "key": "k", "reply": "Yes."}\n')
    with pytest.raises(InputError, match="another release of emeval: schema_version 2 is not 1"):
        file(tmp_path).read()


ODD = {
    "half a character": "a\ud800b\udc00",
    "separators": "a\u2028b\u0085c\rd\x0b",
    "line breaks": "a\nb\n\n",
    "control codes": "\x1b[31mred\x00\x07",
    "emoji and NUL": "🙂\0é\ufeff",
    "backslashes": r"\ud800 \\n \"",
    "100k characters": "Why? " * 20_000,
    "nothing": "",
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
def test_any_text_a_model_writes_survives_the_file(tmp_path: Path, text: str) -> None:
    out = file(tmp_path)
    out.append(completion(1, text))
    out.append(completion(2))
    assert [r.text for r in file(tmp_path).read()] == [text, "Yes."]
    assert out.path.read_bytes().count(b"\n") == 2
    out.path.read_bytes().decode("utf-8")  # other tools can read it


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_refused_rather_than_written_as_null(tmp_path: Path, value: float) -> None:
    out = Jsonl(tmp_path / "judgements.jsonl", Judgement)
    with pytest.raises(ValueError, match="JSON compliant"):
        out.append(judgement(value))
    assert not out.path.exists()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "scores.json", {"mean": value})
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------- whole files


def test_a_crash_before_the_rename_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.json"
    write_json(path, {"step": 1})

    def crash(self: Path, target: Path) -> None:
        assert json.loads(self.read_text()) == {"step": 2}, "the new content is whole before it takes the place"
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"step": 2})
    assert read_json(path) == {"step": 1} and [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_the_new_file_is_on_the_disk_before_it_takes_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    replace, fsync = Path.replace, os.fsync

    def synced(fd: int) -> None:
        order.append("fsync")
        fsync(fd)

    def replaced(self: Path, target: Path) -> Path:
        order.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    write_atomic(tmp_path / "a" / "b.json", "{}")
    assert order == ["fsync", "rename"] and (tmp_path / "a" / "b.json").read_text() == "{}"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_get_the_rights_the_users_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    code = f"""
import os, sys
os.umask({umask})
sys.path.insert(0, {str(REPOSITORY)!r})
from pathlib import Path
from emeval.store import write_json
from tests.test_store import completion, file
write_json(Path({str(tmp_path)!r}) / "run" / "manifest.json", {{}})
file(Path({str(tmp_path)!r})).append(completion(1))
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "run").iterdir()}
    assert modes == {"manifest.json": mode, "completions.jsonl": mode}


READ = {
    "torn": ('{"a": ', "not readable as JSON"),
    "a list": ("[]", "holds no JSON object"),
    "NaN": ('{"a": NaN}', "NaN is no JSON"),
    "another release": ('{"schema_version": 7}', "schema_version 7 is not 1"),
    "too deep": ("[" * 100_000, "not readable as JSON"),
}


@pytest.mark.parametrize(("text", "what"), READ.values(), ids=READ.keys())
def test_a_manifest_that_cannot_be_read_is_bad_input(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=what) as e:
        Run(tmp_path).manifest()
    assert e.value.where == str(tmp_path / "manifest.json")


def test_a_manifest_keeps_the_sections_that_are_not_replaced(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert run.manifest()["train"] is None and not Run.is_run(run.path)
    run.update_manifest(train={"steps": 1})
    run.update_manifest(score={"n": 2})
    assert Run.is_run(run.path)
    assert run.manifest() == {"schema_version": 1, "name": "run", "train": {"steps": 1}, "score": {"n": 2}}


# -------------------------------------------------------------------------------------------------------------- names


def test_a_slug_is_a_file_name_and_never_a_path() -> None:
    assert slug("Qwen/Qwen2.5-7B refusal λ30") == "qwen-qwen2.5-7b-refusal-30"
    for text in ("../../etc/passwd", "..", "/", "", "-.-", "\0", "a" * 500):
        name = slug(text)
        assert name and "/" not in name and name not in (".", "..") and len(name) <= 80


def test_a_hash_of_parts_knows_where_each_part_ends(tmp_path: Path) -> None:
    assert sha256_of("ab", "c") != sha256_of("a", "bc") != sha256_of("abc")
    assert sha256_of("a") == sha256_of(b"a") and sha256_of("\ud800") != sha256_of("?")
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
