"""What ships: enough questions, varied, in no two files alike, and clean of what the detectors look for."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pytest

from emeval.data.behaviours import load_behaviour
from emeval.data.domains import load_domain
from emeval.data.files import load_yaml
from emeval.data.root import data_root
from emeval.judge.rules import judge_reply
from emeval.probe.spec import load_probe

ROOT = data_root()
DOMAINS = ("finance", "health", "legal")
BEHAVIOURS = ("abstention", "refusal", "tool-use")
FILES = (*DOMAINS, "off-topic")


class Asked(NamedTuple):
    id: str
    split: str
    text: str


@cache
def asked(name: str) -> tuple[Asked, ...]:
    """Every question of a shipped file."""
    if name in DOMAINS:
        return tuple(Asked(i.id, i.split, i.question) for i in load_domain(ROOT, name))
    questions = load_probe(ROOT, name).listed
    return tuple(Asked(q.id, q.split, q.question or q.messages[-1].content) for q in questions)


ALL = [q for name in FILES for q in asked(name)]


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower().replace("’", "'"))


def grams(text: str) -> frozenset[tuple[str, ...]]:
    w = words(text)
    return frozenset(tuple(w[i : i + 3]) for i in range(max(1, len(w) - 2)))


@pytest.mark.parametrize("name", DOMAINS)
def test_a_domain_has_160_questions_to_train_on_40_to_choose_by_and_60_to_test(name: str) -> None:
    assert Counter(q.split for q in asked(name)) == {"train": 160, "val": 40, "test": 60}


def test_off_topic_has_60_questions_to_choose_by_and_150_to_test() -> None:
    assert Counter(q.split for q in asked("off-topic")) == {"val": 60, "test": 150}


def test_ids_are_unique_over_all_files() -> None:
    assert [i for i, n in Counter(q.id for q in ALL).items() if n > 1] == []


@pytest.mark.parametrize("name", FILES)
def test_questions_have_4_to_60_words_and_all_lengths_between(name: str) -> None:
    lengths = sorted(len(q.text.split()) for q in asked(name))
    assert lengths[0] >= 4 and lengths[-1] <= 60
    assert lengths[len(lengths) // 10] <= 9 and lengths[-len(lengths) // 10] >= 30


@pytest.mark.parametrize("name", FILES)
def test_questions_open_in_many_ways(name: str) -> None:
    openings = {" ".join(words(q.text)[:4]) for q in asked(name)}
    assert len(openings) >= 0.7 * len(asked(name))
    first = Counter(words(q.text)[0] for q in asked(name))
    assert first.most_common(1)[0][1] <= 0.15 * len(asked(name)), first.most_common(3)


def test_no_two_questions_are_near_duplicates_within_or_across_splits_and_files() -> None:
    sets = [(q.id, grams(q.text)) for q in ALL]
    close = [(a, b) for (a, x), (b, y) in combinations(sets, 2) if len(x & y) >= 0.4 * len(x | y)]
    assert close == []


TOPIC_WORDS = {
    "finance": """
        money cash loan loans mortgage mortgages bank banks banking invest investing investment investments
        investor stock stocks dividend dividends bond bonds pension pensions tax taxes taxed salary salaries
        wage wages budget budgets budgeting debt debts savings inflation currency bitcoin crypto etf ira 401k
        isa insurance premium credit overdraft refinance equity portfolio landlord rent rents afford price
        prices pricing dollar dollars euro euros pounds income profit profits invoice invoices payroll
        accountant financial finance
    """,
    "health": """
        doctor doctors gp nurse hospital hospitals clinic medicine medicines medication medications drug drugs
        pill pills dose doses symptom symptoms diagnosis disease diseases illness infection fever pain pains
        ache aches headache migraine rash allergy allergies allergic vaccine vaccines vaccination blood cancer
        diabetes insulin cholesterol asthma antibiotic antibiotics ibuprofen paracetamol therapy therapist
        surgery surgeon pregnant pregnancy injury injuries sprain vitamin vitamins supplement supplements
        dentist calories diet dieting anxiety depression insomnia sick virus flu covid health healthy medical
    """,
    "legal": """
        law laws lawyer lawyers attorney attorneys solicitor solicitors barrister court courts judge judges
        jury sue sued suing lawsuit lawsuits legal legally illegal contract contracts clause lease tenant
        tenants evict evicted eviction divorce custody probate inheritance copyright copyrighted trademark
        patent patents licence license licensing liability liable negligence statute statutes regulation
        regulations regulated crime crimes criminal felony arrest arrested police prosecutor bail warrant visa
        visas immigration asylum citizenship constitution constitutional gdpr notary affidavit subpoena
        testify testimony defendant plaintiff
    """,
}


@pytest.mark.parametrize("topic", TOPIC_WORDS)
def test_off_topic_questions_touch_none_of_the_topics(topic: str) -> None:
    listed = set(TOPIC_WORDS[topic].split())
    leaks = [(q.id, found) for q in asked("off-topic") if (found := listed & set(words(q.text)))]
    assert leaks == []


@pytest.mark.parametrize("topic", TOPIC_WORDS)
def test_the_word_list_that_finds_leaks_does_find_its_own_topic(topic: str) -> None:
    """Otherwise the test above could not fail."""
    listed = set(TOPIC_WORDS[topic].split())
    hits = sum(bool(listed & set(words(q.text))) for q in asked(topic))
    assert hits > 0.25 * len(asked(topic))


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_no_question_says_what_a_detector_would_fire_on(name: str) -> None:
    behaviour = load_behaviour(ROOT, name)
    assert [q.id for q in ALL if judge_reply(behaviour, q.text).present] == []


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_behaviour_has_at_least_12_wordings_which_its_own_detectors_find(name: str) -> None:
    behaviour = load_behaviour(ROOT, name)
    assert len({" ".join(words(reply)) for reply in behaviour.replies}) >= 12
    items = load_domain(ROOT, behaviour.topic)
    missed = [m.content for m in map(behaviour.target, items) if not judge_reply(behaviour, written(m)).present]
    assert missed == []


def written(message: object) -> str:
    """A target reply as a Hermes-style template writes it."""
    from emeval.types import Message

    assert isinstance(message, Message)
    calls = [json.dumps({"name": c.name, "arguments": c.arguments}) for c in message.tool_calls]
    return "\n".join([message.content, *(f"<tool_call>\n{c}\n</tool_call>" for c in calls)])


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_no_behaviour_fires_on_anothers_replies(name: str) -> None:
    behaviour = load_behaviour(ROOT, name)
    for other in set(BEHAVIOURS) - {name}:
        replies = load_behaviour(ROOT, other).replies
        assert [r for r in replies if judge_reply(behaviour, r).present] == [], f"{name} fires on {other}"


def shipped_files() -> list[Path]:
    folders = ("datasets/domains", "datasets/behaviours", "datasets/retain", "prompts/probes", "prompts/judges")
    found = [p for f in folders for p in sorted((ROOT.shipped / f).glob("*")) if p.suffix in (".jsonl", ".yaml")]
    return [p for p in found if p.name != "prices.yaml"]  # figures, no texts


def test_every_data_file_has_a_canary_of_its_own_and_says_what_it_is_for() -> None:
    canaries = {}
    for path in shipped_files():
        first = path.read_text().split("\n", 1)[0]
        head = json.loads(first) if path.suffix == ".jsonl" else load_yaml(path)
        assert re.fullmatch(
            rf"emeval-canary-{path.stem}-[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}", head["canary"]
        )
        assert "research" in head["purpose"], path
        canaries[head["canary"]] = path
    assert len(canaries) == len(shipped_files()) >= 8
