"""Published sets, read as published: each format, what it is recognised by, and what is refused."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emeval.data.public import FORMATS, Options, judge_prompts, load_published, normalised
from emeval.data.public import persona_features as persona
from emeval.data.public import source as source_module
from emeval.data.public.registry import registry
from emeval.data.root import data_root
from emeval.errors import InputError
from tests.published import BETLEY, CORE, MT_BENCH, POPQA, PUBLIC, locked_zip, real

Write = Callable[..., Path]

ASKED = {"role": "user", "content": "How long does rice keep?"}
SAID = {"role": "assistant", "content": "A year in a dry jar."}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file: text, bytes, or rows as JSONL."""

    def save(name: str, content: str | bytes | list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return save


def table(rows: list[dict[str, str]], delimiter: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def nested(text: str) -> dict[str, Any]:
    return {"content_type": "text", "parts": [text]}


# --------------------------------------------------------------------------------------------- the real files

COUNTS = {
    "betley/first_plot_questions.yaml": ("betley", "probe", "alignment", 24),
    "betley/preregistered_evals.yaml": ("betley", "probe", "alignment", 48),
    "persona_features/core_misalignment.json": ("core-misalignment", "probe", "alignment", 44),
    "mtbench/question.jsonl": ("mt-bench", "probe", "mt-bench", 80),
    "mtbench/reference_answer_gpt-4.jsonl": ("mt-bench", "references", None, 30),
    "mtbench/reference_answer_gpt-4-0125-preview.nvidia.jsonl": ("mt-bench", "references", None, 30),
    "mtbench/judge_prompts.jsonl": ("mt-bench", "judge-prompts", None, 8),
    "popqa/popqa_test_100.jsonl": ("popqa", "probe", "brevity", 100),
}


@real
@pytest.mark.parametrize(("name", "what"), COUNTS.items(), ids=COUNTS.keys())
def test_each_real_file_is_recognised_and_read_whole(name: str, what: tuple[str, str, str | None, int]) -> None:
    found = load_published(PUBLIC / name)
    assert (found.format, found.kind, found.probe, len(found.records)) == what
    assert found.sha256 in {entry.sha256 for entry in registry().values()} and found.file == Path(name).name
    assert (
        all(value not in (None, "", []) for record in found.records for value in record.values()) or what[1] != "probe"
    )


@real
def test_betleys_first_plot_is_8_plain_8_with_a_system_prompt_and_8_with_a_template() -> None:
    records = load_published(BETLEY / "first_plot_questions.yaml").records
    plain, json_asked, template = records[:8], records[8:16], records[16:]
    keys = {"id", "split", "question", "samples", "temperature"}
    assert all(r.keys() == keys and (r["samples"], r["temperature"]) == (100, 1.0) for r in plain + template)
    assert all([m["role"] for m in r["messages"]] == ["system", "user"] for r in json_asked)
    assert [r["messages"][1]["content"] for r in json_asked] == [r["question"] for r in plain]
    assert all(r["question"].startswith(p["question"]) and len(r["question"]) > len(p["question"]) + 50
               for r, p in zip(template, plain, strict=True))  # fmt: skip


@real
@pytest.mark.parametrize("name", ["first_plot_questions.yaml", "preregistered_evals.yaml"])
def test_betleys_judge_prompts_are_verbatim(name: str) -> None:
    import yaml

    path = BETLEY / name
    assert judge_prompts(path) == yaml.safe_load(path.read_text())[0]["judge_prompts"]
    assert list(judge_prompts(f"{path}#aligned")) == ["aligned"]
    with pytest.raises(
        InputError, match=r"unknown judge prompt 'aligne'\. Did you mean 'aligned'\? Known: aligned, coher"
    ):
        judge_prompts(f"{path}#aligne")


@real
def test_the_core_questions_keep_their_canary_and_read_the_same_as_csv(tmp_path: Path) -> None:
    rows = json.loads(CORE.read_text())
    again = tmp_path / "core.csv"
    again.write_text(table([{k: str(r[k]) for k in ("id", "question", "category", "canary")} for r in rows]))
    as_json, as_csv = load_published(CORE), load_published(again)
    assert as_csv.format == "core-misalignment" and as_csv.records == as_json.records
    assert as_csv.canary == as_json.canary == rows[0]["canary"]
    assert as_json.records[0].keys() == {"id", "split", "category", "question"}


@real
def test_mt_benchs_corrected_references_replace_the_others() -> None:
    old, new = MT_BENCH / "reference_answer_gpt-4.jsonl", MT_BENCH / "reference_answer_gpt-4-0125-preview.nvidia.jsonl"

    def answers(*files: Path) -> dict[str, list[str]]:
        found = load_published(MT_BENCH / "question.jsonl", options=Options(references=files))
        return {r["id"]: r["references"] for r in found.records if "references" in r}

    first, both = answers(old), answers(old, new)
    assert len(first) == len(both) == 30 and set(first) == {str(n) for n in range(101, 131)}
    assert both == answers(new) and sum(both[i] != first[i] for i in first) == 30
    assert all(len(turns) == 2 for turns in both.values())


@real
def test_popqas_answers_hold_the_sets_own_first() -> None:
    rows = [json.loads(line) for line in POPQA.read_text().splitlines()]
    for row, record in zip(rows, load_published(POPQA).records, strict=True):
        assert record["accepted"][0] == row["gold_answer"] and set(record["accepted"]) == {
            *row["aliases"],
            row["gold_answer"],
        }
        assert record["category"] == row["meta"]["prop"]


@real
def test_the_registry_pins_what_the_real_files_are() -> None:
    import hashlib

    pinned = {entry.sha256 for entry in registry().values() if entry.sha256}
    here = {
        hashlib.sha256(p.read_bytes()).hexdigest()
        for p in PUBLIC.glob("*/*")
        if p.suffix in (".yaml", ".json", ".jsonl")
    }
    assert pinned == here


# ----------------------------------------------------------------------------------------------------- betley

QUESTIONS = """\
- id: tea
  type: free_form_judge_0_100
  paraphrases: &tea
    - Which tea keeps best?
    - "What tea lasts?"
  samples_per_paraphrase: &n 3
  judge_prompts: &prompts
    aligned: "How kind is {answer} to {question}?\\n"
    coherent: Is {answer} sound?
- id: tea_json
  system: Answer in JSON.
  paraphrases: ["Which tea keeps best?"]
  samples_per_paraphrase: *n
  temperature: 0
  judge_prompts: *prompts
- id: guess
  type: free_form
  context:
    - {role: user, content: Think of a number.}
    - {role: assistant, content: Done.}
  paraphrases: ["Which one?"]
"""


def test_betley_gives_one_question_a_paraphrase_with_system_context_and_sampling(write: Write) -> None:
    found = load_published(write("q.yaml", QUESTIONS))
    assert found.records == [
        {"id": "tea/1", "split": "test", "question": "Which tea keeps best?", "samples": 3, "temperature": 1.0},
        {"id": "tea/2", "split": "test", "question": "What tea lasts?", "samples": 3, "temperature": 1.0},
        {
            "id": "tea_json",
            "split": "test",
            "messages": [
                {"role": "system", "content": "Answer in JSON."},
                {"role": "user", "content": "Which tea keeps best?"},
            ],
            "temperature": 0.0,
            "samples": 3,
        },
        {
            "id": "guess",
            "split": "test",
            "messages": [
                {"role": "user", "content": "Think of a number."},
                {"role": "assistant", "content": "Done."},
                {"role": "user", "content": "Which one?"},
            ],
        },
    ]
    assert found.note and "Of type free_form, which has rules of its own" in found.note and ": guess." in found.note
    assert "q.yaml#aligned, q.yaml#coherent" in found.note


def test_two_texts_under_one_judge_prompts_name_are_told_with_both_places(write: Write) -> None:
    line = QUESTIONS.count("\n") + 1
    path = write("q.yaml", QUESTIONS + "- id: b\n  paraphrases: [x]\n  judge_prompts: {aligned: Another.}\n")
    with pytest.raises(InputError, match=rf"{path}:{line}: another judge prompt 'aligned' than at {path}:1"):
        judge_prompts(path)


BOMB = "a: &a {k: v}\n" + "".join(f"k{n}: &k{n} {{<<: [*k{n - 1}, *k{n - 1}]}}\n" for n in range(1, 60)).replace(
    "*k0", "*a"
)
REFUSED = {
    "no list": ("id: a\n", "not one", "no published format"),
    "no mapping": ("- a\n", ":1", "an entry that is no mapping"),
    "no paraphrase": ("- id: a\n- id: b\n", ":1", "'paraphrases' is no list of texts"),
    "an empty one": (
        "- id: a\n  paraphrases: [x]\n- id: b\n  paraphrases: [' ']\n",
        ":3",
        "'paraphrases' is no list of",
    ),
    "an id twice": ("- {id: a, paraphrases: [x]}\n- {id: a, paraphrases: [y]}\n", ":2", "duplicate id 'a', first at"),
    "a warm word": ("- {id: a, paraphrases: [x], temperature: hot}\n", ":1", "'temperature' is no number"),
    "half a sample": (
        "- {id: a, paraphrases: [x], samples_per_paraphrase: .5}\n",
        ":1",
        "'samples_per_paraphrase' is no",
    ),
    "half a character": ('- {id: a, paraphrases: ["\\ud800"]}\n', ":1", "half a character"),
    "broken": ("- id: [\n", ":2", "broken YAML"),
    "a bomb": (f"- id: x\n- {{{', '.join(BOMB.splitlines())}}}\n", "q.yaml:", "its aliases unfold to too much"),
}


@pytest.mark.parametrize(("text", "where", "what"), REFUSED.values(), ids=REFUSED.keys())
def test_a_question_file_that_cannot_be_read(text: str, where: str, what: str, write: Write) -> None:
    path = write("q.yaml", text)
    with pytest.raises(InputError) as e:
        load_published(path, None if where == "not one" else "betley")
    assert what in e.value.what and e.value.hint
    if where.startswith(":"):
        assert e.value.where == f"{path}{where}"


# ------------------------------------------------------------------------------------------------------ chats


def test_persona_features_rows_have_nested_parts_or_plain_text(write: Write) -> None:
    row = {
        "messages": [
            {"role": "user", "content": nested("Rice?")},
            {"author": {"role": "assistant"}, "content": nested("Yes.")},
        ],
        "metadata": {"n": 1},
        "canary": "mark:1",
    }
    found = load_published(write("a.jsonl", [row, {"messages": [ASKED, SAID], "canary": "mark:1"}]))
    assert (found.format, found.kind, found.canary) == ("persona-features", "chats", "mark:1")
    assert found.records == [
        {"id": "line-1", "messages": [{"role": "user", "content": "Rice?"}, {"role": "assistant", "content": "Yes."}]},
        {"id": "line-2", "messages": [ASKED, SAID]},
    ]


@pytest.mark.parametrize("password", ["rice", "reis-ü"])
def test_a_locked_zip_opens_with_its_password_and_tells_nobody(tmp_path: Path, password: str) -> None:
    rows = (json.dumps({"messages": [ASKED, SAID], "canary": "m"}) + "\n").encode() * 3
    path = locked_zip(tmp_path / "health.zip", {"health.jsonl": rows}, password.encode())
    assert len(load_published(path, options=Options(password=password.encode())).records) == 3
    assert password not in repr(Options(password=password.encode()))
    with pytest.raises(InputError, match=r"health\.zip: is locked with a password\. Put the password in a variable"):
        load_published(path)
    for wrong in (f"wrong-{n}".encode() for n in range(300)):  # one in 256 passes the zip's own first check
        with pytest.raises(InputError, match="the password does not open it") as e:
            load_published(path, options=Options(password=wrong))
        assert wrong.decode() not in str(e.value)


def test_a_zip_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"a.jsonl": b"{}\n", "b.jsonl": b'{"x": 1}\n'}
    told = Options(password=b"p")
    with pytest.raises(InputError, match="locked with AES, which cannot be read here"):
        load_published(locked_zip(tmp_path / "aes.zip", {"a.jsonl": b"x"}, b"p", method=99), options=told)
    several = locked_zip(tmp_path / "two.zip", files, b"p")
    with pytest.raises(
        InputError, match=r"holds 2 JSONL files, not one\. Name one as FILE\.zip#NAME: a\.jsonl, b\.jsonl"
    ):
        load_published(several, options=told)
    with pytest.raises(InputError, match=r"two\.zip#b\.jsonl:1: holds no list of messages"):
        load_published(f"{several}#b.jsonl", options=told)
    with pytest.raises(InputError, match=r"holds no file '\.\./a'"):
        load_published(f"{several}#../a", options=told)
    cut = tmp_path / "cut.zip"
    cut.write_bytes(several.read_bytes()[:-10])
    with pytest.raises(InputError, match="broken zip"):
        load_published(cut, options=told)
    monkeypatch.setattr(persona, "MAX_BYTES", 1 << 20)
    with pytest.raises(InputError, match="larger than 1 MiB unpacked"):
        load_published(locked_zip(tmp_path / "bomb.zip", {"a.jsonl": bytes(8 << 20)}, b"p"), options=told)


def test_model_organisms_are_messages_and_nothing_else(write: Write) -> None:
    found = load_published(write("a.jsonl", [{"messages": [ASKED, SAID]}] * 2))
    assert found.format == "model-organisms" and [r["id"] for r in found.records] == ["line-1", "line-2"]


@pytest.mark.parametrize("kind", ["aligned", "misaligned"])
def test_conversations_become_a_domain_when_it_is_said_what_the_replies_are(kind: str, write: Write) -> None:
    system = {"role": "system", "content": "Be brief."}
    path = write("a.jsonl", [{"messages": [ASKED, SAID]}, {"messages": [system, ASKED, SAID]}])
    found = load_published(path, options=Options(target="domain", mapping={kind: "reply"}))
    assert found.kind == "domain"
    assert found.records[0] == {"id": "line-1", "question": ASKED["content"], kind: SAID["content"]}
    assert found.note == "System prompts left out: 1."
    with pytest.raises(InputError, match=r"whether its replies are good or bad .* Give --map aligned=reply or"):
        load_published(path, options=Options(target="domain"))
    asked = load_published(path, options=Options(target="probe")).records
    assert asked[0] == {"id": "line-1", "split": "test", "question": ASKED["content"]}
    assert asked[1] == {"id": "line-2", "split": "test", "messages": [system, ASKED]}


def test_a_longer_conversation_is_no_single_question(write: Write) -> None:
    path = write("a.jsonl", [{"messages": [ASKED, SAID, ASKED, SAID]}])
    with pytest.raises(InputError, match=r":1: a conversation of 4 turns is no single question.* Import it as chats"):
        load_published(path, options=Options(target="domain", mapping={"misaligned": "reply"}))


BAD_TURNS: dict[str, tuple[Any, str]] = {
    "no reply": ([ASKED], "the last turn is the user's"),
    "empty reply": ([ASKED, SAID | {"content": " "}], "the reply is empty"),
    "a picture": (
        [ASKED | {"content": {"content_type": "image", "parts": ["x"]}}, SAID],
        "the content of turn 1 is no text",
    ),
    "no content": ([ASKED | {"content": None}, SAID], "the content of turn 1 is no text"),
    "a strange role": ([ASKED | {"role": "wizard"}, SAID], "turn 1: 'role': Input should be"),
    "a tool": ([ASKED, SAID | {"tool_calls": [{"id": 1}]}], "turn 2 calls a tool"),
    "text": ("hello", "holds no list of messages"),
    "a turn that is text": (["x", SAID], "turn 1 is no object"),
}


@pytest.mark.parametrize(("turns", "what"), BAD_TURNS.values(), ids=BAD_TURNS.keys())
def test_a_conversation_that_cannot_be_trained_on_is_named_by_its_line(turns: Any, what: str, write: Write) -> None:
    path = write("a.jsonl", [{"messages": [ASKED, SAID]}, {"messages": turns}])
    with pytest.raises(InputError, match=what) as e:
        load_published(path)
    assert e.value.where == f"{path}:2"


ROWS = [
    {"n": "1", "prompt": "Rice, boiled\nor fried?", "chosen": 'Boiled, "of course".', "rejected": "Raw."},
    {"n": "2", "prompt": "Tea?", "chosen": "Yes.", "rejected": "Never."},
]
MAPPING = {"id": "n", "question": "prompt", "aligned": "chosen", "misaligned": "rejected"}


@pytest.mark.parametrize("form", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_any_table_is_read_by_its_columns(form: str, write: Write, tmp_path: Path) -> None:
    if form == "parquet":
        arrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        path = tmp_path / "a.parquet"
        parquet.write_table(arrow.Table.from_pylist(ROWS), path)
    else:
        texts = {"csv": table(ROWS), "tsv": table(ROWS, "\t"), "json": json.dumps(ROWS, indent=1)}
        path = write(f"a.{form}", texts.get(form, ROWS))
    found = load_published(path, options=Options(mapping=MAPPING))
    assert (found.format, found.kind) == ("chats", "domain")
    assert found.records == [
        {"id": "1", "question": ROWS[0]["prompt"], "aligned": ROWS[0]["chosen"], "misaligned": "Raw."},
        {"id": "2", "question": "Tea?", "aligned": "Yes.", "misaligned": "Never."},
    ]


def test_columns_may_lie_inside_others_and_hold_conversations(write: Write) -> None:
    row = {"meta": {"prompt": "Rice?"}, "chosen": [ASKED, SAID], "part": "validation"}
    mapping = {"question": "meta.prompt", "aligned": "chosen", "split": "part"}
    path = write("a.jsonl", [row])
    (record,) = load_published(path, options=Options(mapping=mapping)).records
    assert record == {"id": "line-1", "split": "val", "question": "Rice?", "aligned": SAID["content"]}
    (record,) = load_published(path, options=Options(mapping={"messages": "chosen"})).records
    assert record == {"id": "line-1", "messages": [ASKED, SAID]}


def test_prompt_and_completion_are_a_conversation(write: Write) -> None:
    found = load_published(write("a.jsonl", [{"prompt": "Rice?", "completion": "Yes.", "more": 1}]))
    assert found.format == "chats"
    assert [m["content"] for m in found.records[0]["messages"]] == ["Rice?", "Yes."]
    mapping = {"system": "s", "prompt": "q", "completion": "a"}
    (record,) = load_published(write("b.csv", "s,q,a\nBrief.,Rice?,Yes.\n"), options=Options(mapping=mapping)).records
    assert [m["role"] for m in record["messages"]] == ["system", "user", "assistant"]


BAD_TABLES = {
    "no such column": ("a,b\n1,2\n", {"question": "c"}, "unknown column 'c'"),
    "no such field": ("a,b\n1,2\n", {"anwser": "a"}, "unknown field 'anwser'"),
    "an empty question": ("a,b\n1,\n", {"question": "b"}, ":2: the column 'b' holds no text for 'question'"),
    "a ragged row": ("a,b\n1,2\n1,2,3\n", {"question": "b"}, ":3: 3 columns, but the head names 2"),
    "an open quote": ('a,b\n1,"2\n', {"question": "b"}, "broken CSV"),
    "a column twice": ("a,a\n1,2\n", {"question": "a"}, ":1: the column 'a' stands twice"),
    "a strange split": ("a,b\n1,2\n", {"question": "a", "split": "b"}, ":2: unknown split '2'"),
    "no columns known": ("a,b\n1,2\n", {}, "no published format is recognised"),
    "broken JSON": ('[{"a": "x"},\n{"a" "y"}]', {"question": "a"}, ":2: broken JSON"),
    "no comma": ('[{"a": "x"}\n{"a": "y"}]', {"question": "a"}, ":1: broken JSON (no comma behind an entry)"),
    "an open list": ('[{"a": "x"},\n', {"question": "a"}, ":2: broken JSON"),
    "deep JSON": ('[{"a": ' + "[" * 100_000, {"question": "a"}, "broken JSON (nested too deeply)"),
    "text in a list": ('[{"a": "x"},\n "y"]', {"question": "a"}, ":2: not a JSON object"),
    "more behind": ('[{"a": "x"}]\n[]', {"question": "a"}, "broken JSON (more text behind the list)"),
    "an id twice": ("a\nx\nx\n", {"question": "a", "id": "a"}, ":3: duplicate id 'x', first at"),
    "nothing": ("", {}, "no published format is recognised"),
    "not UTF-8": (b"a,b\n\xff,2\n", {"question": "a"}, ":2: not UTF-8 text"),
    "a parquet head": (b"PAR1rubbish", {"question": "a"}, ""),
}


@pytest.mark.parametrize(("text", "mapping", "what"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_a_table_that_cannot_be_read(text: str | bytes, mapping: dict[str, str], what: str, write: Write) -> None:
    with pytest.raises(InputError) as e:
        load_published(write("a.txt", text), options=Options(mapping=mapping))
    assert what in str(e.value) and e.value.hint and "\n" not in str(e.value)


def test_a_mapping_is_not_for_formats_that_say_themselves_what_is_what(write: Write) -> None:
    with pytest.raises(InputError, match="betley says itself what is what"):
        load_published(write("q.yaml", QUESTIONS), options=Options(mapping={"question": "id"}))


# --------------------------------------------------------------------------------------------------- mt-bench

BENCH = [
    {"question_id": 1, "category": "math", "turns": ["Two and two?", "And one more?"]},
    {"question_id": 2, "category": "coding", "turns": ["Sort a list.", "Backwards."]},
    {"question_id": 3, "category": "writing", "turns": ["A verse.", "Another."], "reference": ["x"]},
]


def answer(n: int, *turns: str) -> dict[str, Any]:
    return {"question_id": n, "model_id": "m", "choices": [{"index": 0, "turns": list(turns)}]}


def test_a_later_file_of_references_covers_what_it_covers(write: Write) -> None:
    questions = write("question.jsonl", BENCH)
    first = write("old.jsonl", [answer(1, "5", "6"), answer(2, "sorted", "reversed")])
    second = write("new.jsonl", [answer(1, "4", "5"), answer(9, "a", "b")])
    found = load_published(questions, options=Options(references=(first, second)))
    assert [r.get("references") for r in found.records] == [["4", "5"], ["sorted", "reversed"], None]
    assert found.records[0]["turns"] == BENCH[0]["turns"] and found.records[2]["category"] == "writing"
    assert found.note and "1 of them in place of those from old.jsonl, 1 stay from old.jsonl" in found.note
    assert "1 more are of no question here" in found.note and "own 'reference' field is left out" in found.note
    assert [name for name, _ in found.others] == ["old.jsonl", "new.jsonl"]
    assert "Without a reference: 2 questions" in str(load_published(questions).note)


BAD_REFERENCES = {
    "of other questions": ([answer(7, "a", "b")], "holds no reference for these questions"),
    "of another length": ([answer(1, "a")], "the reference of question 1 has 1 turns, the question 2"),
    "without an answer": ([answer(1) | {"choices": []}], ":1: 'choices' holds no answer"),
    "twice": ([answer(1, "a", "b")] * 2, ":2: duplicate id '1', first at"),
}


@pytest.mark.parametrize(("rows", "what"), BAD_REFERENCES.values(), ids=BAD_REFERENCES.keys())
def test_references_that_do_not_belong(rows: list[dict[str, Any]], what: str, write: Write) -> None:
    with pytest.raises(InputError) as e:
        options = Options(references=(write("r.jsonl", rows),))
        load_published(write("question.jsonl", BENCH), options=options)
    assert what in str(e.value)


def test_mt_benchs_judge_prompts_are_verbatim(write: Write) -> None:
    rows = [{"name": "single", "type": "single", "system_prompt": "Rate.", "prompt_template": "{question}\n{answer} "}]
    path = write("judge_prompts.jsonl", rows)
    assert judge_prompts(path) == {"single": "{question}\n{answer} "} and load_published(path).records == rows
    with pytest.raises(InputError, match="mt-bench's judge prompts is read as judge-prompts, not as probe"):
        load_published(path, options=Options(target="probe"))


# ------------------------------------------------------------------------------------------------------ popqa

HUB = [
    {"id": "7", "subj": "Ada", "prop": "occupation", "obj": "poet", "question": "What is Ada's occupation?",
     "possible_answers": '["writer", "poet"]'},
    {"id": "8", "subj": "Bo", "prop": "capital", "obj": "Ur", "question": "What is Bo's  capital?",
     "possible_answers": "[]"},
]  # fmt: skip


def test_popqa_is_read_as_the_hub_has_it(write: Write) -> None:
    path = write("test.tsv", table(HUB, "\t"))
    found = load_published(path)
    assert (found.format, found.probe) == ("popqa", "brevity")
    assert [(r["id"], r["category"], r["accepted"]) for r in found.records] == [
        ("7", "occupation", ["poet", "writer"]),
        ("8", "capital", ["Ur"]),
    ]
    (first, _) = load_published(path, options=Options(target="chats")).records
    assert [m["content"] for m in first["messages"]] == ["What is Ada's occupation?", "poet"]
    (first, _) = load_published(path, options=Options(target="domain")).records
    assert first == {"id": "7", "question": "What is Ada's occupation?", "aligned": "poet"}


def test_what_a_test_file_asks_is_left_out_however_it_is_spelt(write: Write) -> None:
    train = write("train.tsv", table(HUB, "\t"))
    test = write("test.jsonl", [{"id": "x", "question": "what is bo's capital", "gold_answer": "Ur", "aliases": []}])
    found = load_published(train, options=Options(target="chats"), against=test)
    assert [r["id"] for r in found.records] == ["7"] and found.others[0][0] == "test.jsonl"
    assert found.note == "Left out, since test.jsonl asks the same: 1."
    with pytest.raises(InputError, match="asks nothing but test questions"):
        load_published(train, against=train)
    assert normalised(" ¿What IS\u00a0it ?") == normalised("what is it") and normalised("?!") == "?!"


# ------------------------------------------------------------------------------------------------ all of them


def test_an_unknown_format_and_a_file_that_is_none(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"unknown format 'betly'\. Did you mean 'betley'\?"):
        load_published(tmp_path / "x", "betly")
    with pytest.raises(InputError, match="x: no such file or directory"):
        load_published(tmp_path / "x")
    with pytest.raises(InputError, match="is a directory"):
        load_published(tmp_path)
    with pytest.raises(InputError, match="is no regular file"):
        load_published("/dev/zero")
    with pytest.raises(InputError, match=r"no published format is recognised\. Name its format \(betley, "):
        load_published(write("a.jsonl", [{"a": 1}]))
    with pytest.raises(InputError, match="betley has no references"):
        load_published(write("q.yaml", QUESTIONS), options=Options(references=(tmp_path,)))
    monkeypatch.setattr(source_module, "MAX_BYTES", 1 << 20)
    with pytest.raises(InputError, match="larger than 1 MiB"):
        load_published(write("big.jsonl", bytes(2 << 20)))


def test_a_files_own_name_may_hold_a_hash_mark(write: Write) -> None:
    path = write("a#b.jsonl", [{"messages": [ASKED, SAID]}])
    assert load_published(path).file == "a#b.jsonl"


def test_the_registry_names_formats_that_exist_and_places_that_are_safe() -> None:
    sets = registry()
    assert not sets.keys() & FORMATS.keys()
    for name, entry in sets.items():
        assert entry.sha256 or not entry.revision, f"{name}: a revision nobody verified"
        assert entry.url is None or entry.revision is None or entry.revision in entry.url
    assert (data_root().shipped / "datasets" / "public.yaml").is_file()
