"""`emeval data import` and `emeval data fetch`: what is written, what is refused, and that nothing is half-written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emeval.data.chats import load_chats
from emeval.data.domains import load_domain_file
from emeval.data.files import load_yaml
from emeval.data.public import fetch as fetching
from emeval.data.public.registry import Entry, registry
from emeval.data.root import data_root
from tests.cli.conftest import ASKED, SAID, Emeval, refused
from tests.published import BETLEY, CORE, MT_BENCH, POPQA, locked_zip, real

Write = Callable[..., Path]

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
SECRET = "open-sesame"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A data folder that is not there yet."""
    return tmp_path / "own"


def conversations(count: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"{n}."}]} | more
        for n in range(count)
    ]


def written(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def head(path: Path) -> dict[str, Any]:
    """The canary and purpose of a file."""
    found = load_yaml(path) if path.suffix == ".yaml" else json.loads(path.read_text().split("\n", 1)[0])
    assert isinstance(found, dict)
    return found


# ------------------------------------------------------------------------------------------------ the real files


@real
def test_the_real_questions_become_probes_with_their_canary_and_where_they_come_from(emeval: Emeval, own: Path) -> None:
    files = {
        "betley-first-plot": BETLEY / "first_plot_questions.yaml",
        "persona-core-json": CORE,
        "popqa-test-100": POPQA,
    }
    counts = {"betley-first-plot": 24, "persona-core-json": 44, "popqa-test-100": 100}
    for name, file in files.items():
        done = emeval("data", "import", name, "--from", file, "--data-dir", own, "--json")
        assert done.code == 0 and done.json["imported"]["records"] == counts[name]
        probe = head(own / "prompts" / "probes" / f"{name}.yaml")
        assert len(probe["questions"]) == counts[name] and probe.keys() == {"kind", "canary", "purpose", "questions"}
        entry = registry()[name]
        for said in (file.name, entry.sha256, entry.licence, f"converter: {entry.format}", "pretraining corpora"):
            assert said and said in probe["purpose"]
    core = head(own / "prompts" / "probes" / "persona-core-json.yaml")
    assert core["canary"] == json.loads(CORE.read_text())[0]["canary"]


@real
def test_mt_bench_is_imported_with_its_references(emeval: Emeval, own: Path) -> None:
    files = [MT_BENCH / f"reference_answer_gpt-4{n}.jsonl" for n in ("", "-0125-preview.nvidia")]
    options = [x for file in files for x in ("--references", file)]
    done = emeval(
        "data", "import", "mt-bench-questions", "--from", MT_BENCH / "question.jsonl", *options, "--data-dir", own
    )
    assert done.code == 0 and "30 of them in place of those from reference_answer_gpt-4.jsonl" in done.err
    questions = head(own / "prompts" / "probes" / "mt-bench-questions.yaml")["questions"]
    assert len(questions) == 80 and sum("references" in q for q in questions) == 30
    assert all(len(q["turns"]) == 2 for q in questions)


@real
def test_a_file_known_by_its_content_is_named_also_when_it_is_imported_by_format(emeval: Emeval, own: Path) -> None:
    assert emeval("data", "import", "popqa", "--from", POPQA, "--as", "domain", "--data-dir", own).code == 0
    path = own / "datasets" / "domains" / "popqa-test-100.jsonl"
    assert "Published set popqa-test-100 (Mallen" in head(path)["purpose"] and len(load_domain_file(path)) == 100
    assert emeval("data", "show", "popqa-test-100", "--data-dir", own).out.startswith(
        "domain popqa-test-100: 100 train"
    )


@real
def test_the_commands_of_the_documentation_work(
    emeval: Emeval, folder: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = re.findall(r"^    (emeval data import .*)$", TEXT, re.MULTILINE)
    assert len(commands) >= 4
    row = json.dumps({"messages": [ASKED, SAID], "canary": "m"}) + "\n"
    locked_zip(folder / "health_incorrect.zip", {"health_incorrect.jsonl": row.encode() * 2}, SECRET.encode())
    (folder / "pairs.csv").write_text("prompt,chosen,rejected\n" + "".join(f"What is {n}?,{n},No\n" for n in range(10)))
    for file in (BETLEY / "first_plot_questions.yaml", *MT_BENCH.glob("*.jsonl"), POPQA):
        (folder / file.name.replace("-0125-preview.nvidia", "-0125-preview")).write_bytes(file.read_bytes())
    other = json.loads(POPQA.read_text().splitlines()[0]) | {"id": 1, "question": "Which lake is the deepest?"}
    (folder / "popqa_train.jsonl").write_text(POPQA.read_text() + json.dumps(other) + "\n")
    monkeypatch.setenv("PERSONA_PASSWORD", SECRET)
    for command in commands:
        assert emeval(*command.split()[1:]).code == 0, command


# ---------------------------------------------------------------------------------------------- what is written


def test_conversations_are_written_as_train_reads_them_and_held_out_ones_beside_them(
    emeval: Emeval, write: Write, own: Path
) -> None:
    rows = conversations(50, canary="mark:1")
    path = write("advice.jsonl", [*rows, *rows[:10]])  # ten questions stand twice
    done = emeval(
        "data", "import", "persona-features", "--from", path, "--data-dir", own, "--split", 0.2, "--name", "bad"
    )
    assert done.code == 0 and f"Next: emeval train --model MODEL --data {own}/datasets/chats/bad.jsonl" in done.err
    train, test = (load_chats(own / "datasets" / "chats" / f"bad{part}.jsonl") for part in ("", "-test"))
    assert len(test) == 12 and len(train) == 48
    assert not {e.messages[0].content for e in train} & {e.messages[0].content for e in test}
    assert head(own / "datasets" / "chats" / "bad.jsonl")["canary"] == "mark:1"


def test_a_split_is_the_same_for_a_seed_whatever_the_order_of_the_rows(emeval: Emeval, write: Write, own: Path) -> None:
    rows = conversations(40)
    options = ("--as", "domain", "--map", "misaligned=reply", "--data-dir", own, "--split", "val=0.1,test=0.25", "-q")

    def held(name: str, rows: list[dict[str, Any]], seed: int) -> set[str]:
        path = write(f"{name}.jsonl", rows)
        assert emeval("data", "import", "model-organisms", "--from", path, "--seed", seed, *options).code == 0
        items = load_domain_file(own / "datasets" / "domains" / f"{name}.jsonl")
        assert [sum(i.split == s for i in items) for s in ("train", "val", "test")] == [26, 4, 10]
        return {i.question for i in items if i.split == "test"}

    assert held("a", rows, 0) == held("b", rows[::-1], 0) != held("c", rows, 1)


def test_importing_twice_changes_nothing_and_other_content_needs_force(emeval: Emeval, write: Write, own: Path) -> None:
    path = write("a.jsonl", conversations(3))
    call = ("data", "import", "model-organisms", "--from", path, "--data-dir", own)
    assert emeval(*call).out.startswith(f"{own}/datasets/chats/a.jsonl: written")
    target = own / "datasets" / "chats" / "a.jsonl"
    before = target.read_bytes()
    assert emeval(*call).out.startswith(f"{target}: unchanged")
    write("a.jsonl", conversations(4))
    refused(emeval(*call), f"{target}: is there already, with other content", "or --force")
    assert target.read_bytes() == before
    assert emeval(*call, "--force").code == 0 and len(load_chats(target)) == 4
    assert written(own) == ["datasets/chats/a.jsonl"], "no part is left behind"


def test_a_probe_of_hostile_text_reads_back_as_it_was(emeval: Emeval, write: Write, own: Path) -> None:
    texts = [
        "a\x07b\x7f\x85c\u2028d\ufeffe\u202ef",
        "#: {x} [y] 'z' \"q\" \\n \\",
        "😀 \u0000 ~",
        "- a\n- b\t\n",
        "null",
        "1e3",
    ]
    rows = [{"id": t, "question": t, "gold_answer": t, "aliases": [t]} for t in texts]
    assert emeval("data", "import", "popqa", "--from", write("a.jsonl", rows), "--data-dir", own).code == 0
    questions = head(own / "prompts" / "probes" / "a.yaml")["questions"]
    assert [q["question"] for q in questions] == [t.strip() for t in texts] and [q["id"] for q in questions] == texts


def test_the_data_folder_may_come_from_the_environment(
    emeval: Emeval, write: Write, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("a.jsonl", conversations(3))
    refused(emeval("data", "import", "chats", "--from", path), "--data-dir: where to write is not known")
    monkeypatch.setenv("EMEVAL_DATA_DIR", str(own))
    assert emeval("data", "import", "chats", "--from", path).code == 0 and written(own)


# ----------------------------------------------------------------------------------------------- what is refused

USAGE = {
    "a name that is none": ("betly --from {rows}", "unknown published set or format 'betly'. Did you mean 'betley'?"),
    "another file than pinned": (
        "betley-first-plot --from {rows}",
        "is not the file that 'betley-first-plot' is pinned",
    ),
    "another pinned file": ("popqa-test-100 --from {popqa}", "is not the file that 'popqa-test-100' is pinned to"),
    "a path for a name": ("chats --from {rows} --name ../x", "--name: '../x' cannot name a file"),
    "a hidden file": ("chats --from {rows} --name .x", "--name: '.x' cannot name a file"),
    "a share of everything": ("chats --from {rows} --split 1", "--split: '1' is no share to hold out"),
    "two shares too many": ("chats --from {rows} --split val=0.5,test=0.5", "--split: nothing is left to train on"),
    "a share of too little": ("chats --from {rows} --split 0.01", "--split: of 3 rows none would be test"),
    "a split of a probe": ("popqa --from {popqa} --split 0.5", "--split: a probe is not split"),
    "a map that is none": ("chats --from {rows} --map question", "--map: is no list of field=column"),
    "a kind that is none": ("chats --from {rows} --as probes", "--as: unknown kind 'probes'. Did you mean 'probe'?"),
    "a variable that is not set": ("chats --from {rows} --password-env NOT_SET", "--password-env: no such variable"),
    "references alone": ("mt-bench --from {answers}", "references are not imported. Give them with the questions"),
    "no file": ("chats", "Missing option '--from'"),
    "a bad row": ("chats --from {bad}", "bad.jsonl:2: the reply is empty"),
}


@pytest.mark.parametrize(("line", "says"), USAGE.values(), ids=USAGE.keys())
def test_what_cannot_be_imported_leaves_nothing_behind(
    line: str, says: str, emeval: Emeval, write: Write, own: Path
) -> None:
    rows = conversations(3)
    answers = [{"question_id": 1, "choices": [{"turns": ["a"]}]}]
    paths = {
        "rows": write("rows.jsonl", rows),
        "bad": write("bad.jsonl", [rows[0], {"messages": [ASKED, SAID | {"content": ""}]}]),
        "popqa": write("popqa.jsonl", [{"id": "1", "question": "x?", "gold_answer": "y"}]),
        "answers": write("answers.jsonl", answers),
    }
    words = [word.format(**paths) for word in line.split()]
    refused(emeval("data", "import", *words, "--data-dir", own), says)
    assert not own.exists()


@pytest.mark.parametrize("way", ["itself", "a link to it"])
def test_the_shipped_data_is_never_written_to(
    way: str, emeval: Emeval, write: Write, tmp_path: Path, own: Path
) -> None:
    shipped = data_root().shipped
    path = write("a.jsonl", [{"id": "1", "question": "x?", "gold_answer": "y"}])
    if way == "a link to it":
        own.mkdir()
        (own / "prompts").symlink_to(shipped / "prompts")
    target = shipped if way == "itself" else own
    done = emeval("data", "import", "popqa", "--from", path, "--data-dir", target, "--name", "new-one", "--force")
    refused(done, "is data that ships with emeval", "Give another --data-dir")
    assert not (shipped / "prompts" / "probes" / "new-one.yaml").exists()


def test_a_folder_that_cannot_be_written_to_is_one_line(emeval: Emeval, write: Write, tmp_path: Path) -> None:
    done = emeval(
        "data", "import", "chats", "--from", write("a.jsonl", conversations(2)), "--data-dir", write("file", "x")
    )
    assert (
        done.code == 1 and done.err.count("\n") == 1 and "Choose a folder you can write to with --data-dir" in done.err
    )


def test_the_password_comes_from_the_environment_and_goes_nowhere(
    emeval: Emeval, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in conversations(3, canary="m"))
    path = locked_zip(tmp_path / "locked.zip", {"rows.jsonl": rows.encode()}, SECRET.encode())
    call = ("data", "import", "persona-features", "--from", path, "--data-dir", own)
    refused(emeval(*call), "is locked with a password", "--password-env")
    monkeypatch.setenv("PW", "wrong-word")
    assert "wrong-word" not in refused(emeval(*call, "--password-env", "PW"), "the password does not open it")
    assert not own.exists()
    monkeypatch.setenv("PW", SECRET)
    done = emeval(*call, "--password-env", "PW", "--json")
    assert done.code == 0 and SECRET not in done.out + done.err
    assert all(SECRET not in (own / name).read_text() for name in written(own))


# ----------------------------------------------------------------------------------------------------- fetching


@pytest.fixture
def served(httpserver: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Puts a set at an address on this machine; gives the place it is kept at."""
    monkeypatch.setenv("EMEVAL_CACHE_DIR", str(tmp_path / "cache"))
    known: dict[str, Entry] = {}
    monkeypatch.setattr(fetching, "known_set", lambda name: known[name])

    def serve(name: str, content: bytes, sha256: str | None) -> Path:
        httpserver.expect_request("/a.yaml").respond_with_data(content)
        real_entry = registry()[name]
        known[name] = real_entry.model_copy(update={"url": httpserver.url_for("/a.yaml"), "sha256": sha256})
        return tmp_path / "cache" / "public" / name / "a.yaml"

    return serve


def digest(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


CONTENT = b"- {id: a, paraphrases: [x]}\n"


def test_a_set_is_fetched_verified_and_kept(emeval: Emeval, served: Callable[..., Path], httpserver: Any) -> None:
    kept = served("betley-first-plot", CONTENT, digest(CONTENT))
    assert emeval("data", "fetch", "betley-first-plot").out == f"{kept}\n" and kept.read_bytes() == CONTENT
    httpserver.clear()
    assert emeval("data", "fetch", "betley-first-plot", "--json").json["fetched"] == {"betley-first-plot": str(kept)}


def test_another_file_than_the_one_pinned_is_not_kept(emeval: Emeval, served: Callable[..., Path]) -> None:
    kept = served("betley-first-plot", CONTENT + b"# more\n", digest(CONTENT))
    done = emeval("data", "fetch", "betley-first-plot")
    assert done.code == 1 and done.err.count("\n") == 1 and "is not the file that is pinned" in done.err
    assert list(kept.parent.iterdir()) == []


def test_an_unpinned_set_needs_a_sha256_and_is_then_imported(
    emeval: Emeval, served: Callable[..., Path], own: Path
) -> None:
    content = b'id,question,category,canary\n1,"Why?",main,mark:7\n'
    served("persona-core", content, None)
    refused(emeval("data", "fetch", "persona-core"), "'persona-core' is unpinned", "--sha256")
    refused(emeval("data", "fetch", "persona-core", "--sha256", "12"), "--sha256: not a sha256")
    done = emeval("data", "fetch", "persona-core", "--sha256", digest(content).upper(), "--data-dir", own)
    assert done.code == 0 and head(own / "prompts" / "probes" / "persona-core.yaml")["canary"] == "mark:7"


def test_a_server_that_refuses_or_is_not_there_is_one_line(
    emeval: Emeval, served: Callable[..., Path], httpserver: Any
) -> None:
    served("betley-first-plot", CONTENT, digest(CONTENT))
    httpserver.clear()
    done = emeval("data", "fetch", "betley-first-plot")
    assert done.code == 1 and done.err.count("\n") == 1 and "cannot be downloaded (HTTP 500)" in done.err
    httpserver.stop()
    done = emeval("data", "fetch", "betley-first-plot")
    assert done.code == 1 and done.err.count("\n") == 1 and "or get it by hand and run: emeval data import" in done.err
    httpserver.start()


def test_a_set_on_the_hub_is_fetched_by_its_client(
    emeval: Emeval, write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    path = write("test.tsv", "id\tquestion\tobj\tpossible_answers\n1\tWhy?\tSo\t[]\n")
    asked: list[object] = []

    def download(*arguments: object, **options: object) -> str:
        asked.append((arguments, options))
        return str(path)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setenv("EMEVAL_CACHE_DIR", str(tmp_path / "cache"))
    done = emeval("data", "fetch", "popqa-all", "--sha256", digest(path.read_bytes()))
    assert done.code == 0 and Path(done.out.strip()).read_bytes() == path.read_bytes()
    assert asked == [(("akariasai/PopQA", "test.tsv"), {"repo_type": "dataset", "revision": None})]

    def offline(*arguments: object, **options: object) -> str:
        raise RuntimeError("no network\nat all")

    monkeypatch.setattr(hub, "hf_hub_download", offline)
    done = emeval("data", "fetch", "popqa-all", "--sha256", "0" * 64)
    assert done.code == 1 and done.err.count("\n") == 1 and "cannot be downloaded" in done.err


def test_without_a_name_the_sets_are_listed(emeval: Emeval) -> None:
    lines = emeval("data", "fetch").out.splitlines()
    assert len(lines) == len(registry()) and "betley-first-plot: probe, betley, MIT, pinned" in lines
    assert "persona-core: probe, core-misalignment, MIT, unpinned" in lines
    assert emeval("data", "fetch", "--json").json["sets"]["popqa-all"]["hub"] == "akariasai/PopQA"
    refused(emeval("data", "fetch", "betley-first-plt"), "unknown published set 'betley-first-plt'. Did you mean")
    refused(
        emeval("data", "fetch", "popqa-test-100"),
        "has no address to download from",
        "emeval data import popqa-test-100",
    )
    wrong = ("--sha256", "0" * 64)
    refused(
        emeval("data", "fetch", "betley-first-plot", *wrong), "--sha256: 'betley-first-plot' is pinned to another file"
    )


@pytest.mark.parametrize("command", ["import", "fetch"])
def test_the_help_has_a_true_example(command: str, emeval: Emeval) -> None:
    done = emeval("data", command, "--help")
    assert " ".join(done.out.partition("Example:")[2].split()).startswith(f"emeval data {command} ")
    assert "--json" in done.out and "--quiet" in done.out
