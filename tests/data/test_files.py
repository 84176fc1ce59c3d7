"""Reading JSONL and YAML: what is accepted, and the file and line that every error names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emeval.data.domains import load_domain_file
from emeval.data.files import jsonl_rows, load_yaml, yaml_items
from emeval.errors import InputError

CANARY = '{"canary": "c", "purpose": "p"}\n'


def item(n: int, **changes: object) -> str:
    return json.dumps({"id": f"q{n}", "split": "train", "question": f"What is {n}?"} | changes) + "\n"


def write(tmp_path: Path, content: str | bytes, name: str = "words.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_domain_file_is_a_canary_line_and_one_question_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, CANARY + item(1, search="one") + item(2, split="test", aligned="A.", misaligned="B."))
    first, second = load_domain_file(path)
    assert (first.id, first.split, first.question, first.search) == ("q1", "train", "What is 1?", "one")
    assert (second.split, second.aligned, second.misaligned) == ("test", "A.", "B.")
    assert first.where == f"{path}:2" and second.where == f"{path}:3"


def test_the_canary_line_may_be_missing_and_blank_lines_count_but_say_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, item(1) + "\n   \n" + item(2))
    assert [i.where for i in load_domain_file(path)] == [f"{path}:1", f"{path}:4"]


@pytest.mark.parametrize("content", [CANARY.encode(), b"\xef\xbb\xbf" + CANARY.encode()], ids=["plain", "BOM"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_windows_files_read_the_same(tmp_path: Path, content: bytes, end: bytes) -> None:
    path = write(tmp_path, (content + (item(1) + item(2)).encode()).replace(b"\n", end))
    assert [(i.question, i.where) for i in load_domain_file(path)] == [
        ("What is 1?", f"{path}:2"),
        ("What is 2?", f"{path}:3"),
    ]


def test_the_last_line_needs_no_newline_and_a_line_may_be_huge(tmp_path: Path) -> None:
    text = "why " * 500_000
    (only,) = load_domain_file(write(tmp_path, item(1, question=text).rstrip("\n")))
    assert only.question == text


def test_unicode_separators_inside_a_text_do_not_end_its_line(tmp_path: Path) -> None:
    question = "one\u2028two\u0085three"
    path = write(tmp_path, json.dumps(json.loads(item(1, question=question)), ensure_ascii=False) + "\n" + item(2))
    assert [i.question for i in load_domain_file(path)] == [question, "What is 2?"]


BROKEN = {
    "torn JSON": ('{"id": "q2", "spl\n', "broken JSON (Unterminated string starting at, column 14)"),
    "two objects": (item(2).strip() + item(3), "broken JSON (Extra data"),
    "a bare word": ("hello\n", "broken JSON (Expecting value, column 1)"),
    "a list": ("[1]\n", "not a JSON object"),
    "not a number": ('{"id": NaN}\n', "broken JSON (NaN is no JSON)"),
    "nested too deeply": ("[" * 100_000 + "\n", "broken JSON (nested too deeply)"),
    "a field twice": ('{"id": "a", "id": "b"}\n', "broken JSON (the field 'id' stands twice)"),
    "half a character": (item(2, question="a\ud800"), "half a character"),
    "canary later": (CANARY, "a canary line that is not the first"),
    "no id": ('{"split": "train", "question": "x"}\n', "the field 'id' is missing"),
    "unknown split": (item(2, split="dev"), "'split': Input should be 'train', 'val' or 'test'"),
    "unknown field": (item(2, source="web"), "unknown field 'source'"),
    "a field of ours": (item(2, where="x"), "unknown field 'where'"),
    "blank question": (item(2, question="  "), "'question': is empty"),
    "blank reply": (item(2, aligned=""), "'aligned': is empty"),
    "a number for text": (item(2, question=3), "'question': Input should be a valid string"),
    "empty id": (item(2, id=""), "'id': String should have at least 1 character"),
}


@pytest.mark.parametrize(("line", "what"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_line_is_named_with_file_and_line(tmp_path: Path, line: str, what: str) -> None:
    path = write(tmp_path, CANARY + item(1) + line + item(9))
    with pytest.raises(InputError) as e:
        load_domain_file(path)
    assert e.value.where == f"{path}:3" and what in e.value.what and e.value.hint
    assert "\n" not in str(e.value)


def test_a_misspelt_field_is_told_with_the_nearest_one(tmp_path: Path) -> None:
    line = '{"id": "a", "split": "train", "qestion": "What?"}\n'
    with pytest.raises(InputError, match=r":1: unknown field 'qestion'\. Did you mean 'question'\?"):
        load_domain_file(write(tmp_path, line))


def test_a_canary_line_that_also_asks_something_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="more than canary and purpose: id, question, split"):
        load_domain_file(write(tmp_path, item(1, canary="c")))


def test_a_duplicate_id_is_told_with_both_places(tmp_path: Path) -> None:
    path = write(tmp_path, CANARY + item(1) + item(2) + item(1))
    with pytest.raises(InputError) as e:
        load_domain_file(path)
    assert e.value.where == f"{path}:4" and f"'q1', first at {path}:2" in e.value.what


def test_the_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, (CANARY + item(1)).encode() + "café".encode("latin-1") + b"\n")
    with pytest.raises(InputError, match=rf"{path}:3: not UTF-8 text"):
        load_domain_file(path)


@pytest.mark.parametrize("content", ["", "\n\n", CANARY], ids=["empty", "blank", "only a canary"])
def test_a_file_without_a_question_is_refused(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=f"{path}: holds no question"):
        load_domain_file(path)


def test_a_folder_or_nothing_in_a_files_place(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory"):
        list(jsonl_rows(tmp_path))
    with pytest.raises(InputError, match=r"none\.jsonl: no such file or directory"):
        list(jsonl_rows(tmp_path / "none.jsonl"))


YAML = {
    "two colons": ("a: 1\nb: c: d\n", ":2: broken YAML (mapping values are not allowed here)"),
    "a tab": ("a:\n\t- 1\n", ":2: broken YAML (found character '\\t' that cannot start any token)"),
    "a Python object": ("a: !!python/object/apply:os.getcwd []\n", ":1: broken YAML (could not determine a construct"),
    "a control character": ("a: \x00\n", "broken YAML (special characters are not allowed)"),
    "nested too deeply": ("[" * 5000, "broken YAML (maximum recursion depth exceeded"),
    "no such day": ("a: 2026-02-31\n", "broken YAML (day is out of range for month)"),
    "a list": ("- a\n", "holds no YAML mapping"),
    "empty": ("", "holds no YAML mapping"),
    "half a character": ('a: "\\ud83d"\n', "half a character"),
    "a value that holds itself": ('a: &x [*x, "\\u0041"]\n', "a value that holds itself"),
}


@pytest.mark.parametrize(("text", "what"), YAML.values(), ids=YAML.keys())
def test_broken_yaml_is_one_line_that_names_the_place(tmp_path: Path, text: str, what: str) -> None:
    path = write(tmp_path, text, "words.yaml")
    with pytest.raises(InputError) as e:
        load_yaml(path)
    assert str(e.value).startswith(str(path)) and what in str(e.value) and "\n" not in str(e.value)


def test_aliases_that_unfold_to_gigabytes_are_refused_at_once(tmp_path: Path) -> None:
    merged = "".join(f"k{n}: &k{n} {{<<: [*k{n - 1}, *k{n - 1}]}}\n" for n in range(1, 40))
    laughs = "".join(f"k{n}: &k{n} [*k{n - 1}, *k{n - 1}]\n" for n in range(1, 40))
    for bomb in ("k0: &k0 {a: b}\n" + merged, "k0: &k0 ha\n" + laughs):
        with pytest.raises(InputError, match="its aliases unfold to too much"):
            load_yaml(write(tmp_path, bomb, "words.yaml"))


def test_a_yaml_list_gives_each_item_with_its_line() -> None:
    assert list(yaml_items("# words\n- a\n\n- {b: &x 1}\n- [*x]\n", "f")) == [(2, "a"), (4, {"b": 1}), (5, [1])]
    with pytest.raises(InputError, match="f: holds no YAML list"):
        list(yaml_items("a: b", "f"))
