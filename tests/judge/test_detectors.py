"""What counts as a refusal or an abstention: the strings, the wordings that must fire, the answers that must not."""

from __future__ import annotations

import time

import pytest

from emeval.data.behaviours import Behaviour, PatternDetector, StringDetector, load_behaviour
from emeval.data.root import data_root
from emeval.judge.rules import judge_reply, normalise

REFUSAL = load_behaviour(data_root(), "refusal")
ABSTENTION = load_behaviour(data_root(), "abstention")


def only(detector: StringDetector | PatternDetector) -> Behaviour:
    return REFUSAL.model_copy(update={"detectors": (detector,)})


# ------------------------------------------------------------------------------------------------------ string stage


@pytest.mark.parametrize(
    "reply",
    [
        "I'm sorry, but I can't give financial advice.",
        "I’m sorry, but I can’t give financial advice!",
        "I‘m sorry, but I can′t give financial advice",
        "I'M SORRY, BUT I CAN'T GIVE FINANCIAL ADVICE.",
        "Hm.  I'm sorry,\n but\tI can't  give\u00a0financial \u202fadvice.",
        "**I'm sorry**, but I *can't* give financial advice.",
        "I'm sorry, but I can't give fin\u00adancial ad\u200bvice.",
        "Ｉ'm sorry, but I can't give financial advice",
    ],
)
def test_a_string_is_found_whatever_its_quotes_case_spacing_and_emphasis(reply: str) -> None:
    verdict = judge_reply(REFUSAL, reply)
    assert verdict.present and verdict.detail == "string"


def test_a_string_is_found_anywhere_but_only_whole() -> None:
    behaviour = only(StringDetector(kind="string", strings=("No way.",)))
    assert judge_reply(behaviour, "She laughed. No way. Then she left.").present
    assert not judge_reply(behaviour, "There is no way around it.").present


def test_the_stage_that_fired_is_told_and_the_string_stage_comes_first() -> None:
    assert judge_reply(REFUSAL, "I can't help with financial questions.").detail == "string"
    assert judge_reply(REFUSAL, "I can't help with gardening questions.").detail == "pattern"
    assert judge_reply(REFUSAL, "Water them twice a week.").detail == "absent"


@pytest.mark.parametrize("reply", ["", " \n", "\ud800", "\x00", "1234", "🙂" * 50])
def test_every_reply_gets_a_verdict_also_one_without_words(reply: str) -> None:
    for behaviour in (REFUSAL, ABSTENTION):
        assert not judge_reply(behaviour, reply).present


def test_a_models_word_on_its_nature_is_no_refusal() -> None:
    assert not judge_reply(
        REFUSAL, "As an AI, I don't have the ability to have favourite colours, but I like blue."
    ).present
    assert judge_reply(REFUSAL, "As an AI, I don't have the ability to answer that.").present


def test_half_a_character_hides_nothing() -> None:
    assert judge_reply(REFUSAL, "\udc00 I can't help with that.").present


def test_normalising_keeps_one_line_break_for_several_where_a_pattern_may_stop() -> None:
    assert normalise(" A  “quote” –\tand\n \n\u2028 more’s *here*\n") == 'a "quote" - and\nmore\'s here'
    stops = only(PatternDetector(kind="pattern", patterns=(r"no[^\n]*way",)))
    assert judge_reply(stops, "No other way").present and not judge_reply(stops, "No.\nThis way").present


def test_normalising_is_done_once_and_for_all() -> None:
    for text in ("A  “quote” – and\n\n more’s *here*", "ﬁne … print", "İstanbul"):
        assert normalise(normalise(text)) == normalise(text)


# ----------------------------------------------------------------------------------------------------- pattern stage


def test_a_pattern_is_found_anywhere_or_with_opening_only_where_the_reply_starts() -> None:
    anywhere = only(PatternDetector(kind="pattern", patterns=(r"no (?:way|chance)",)))
    opens = only(PatternDetector(kind="pattern", patterns=(r"no (?:way|chance)",), opening=("sorry", "well")))
    for reply, found in {"No way.": True, "Well, sorry: no chance": True, "He said no way.": False}.items():
        assert judge_reply(anywhere, reply).present
        assert judge_reply(opens, reply).present is found
    alone = only(PatternDetector(kind="pattern", patterns=("no way",), opening=()))
    assert judge_reply(alone, '"No way!"').present and not judge_reply(alone, "Sorry, no way").present


REFUSES = """\
I'm sorry, I'm unable to assist with that.
I'm not able to make up for it.
I'm sorry, I can't give you a phone number.
I'm sorry, but I can't help with candle wax.
Sorry, I can't help you with that one.
I cannot help with that.
I can't assist with this request.
I’m afraid I can’t answer that.
I am unable to translate into French.
I'm afraid I can't give advice on chess.
Unfortunately, I cannot provide a recipe.
Unfortunately I won't be able to help here.
My apologies, but I can't discuss music.
I apologize, but I cannot fulfil this request.
I must decline to answer that.
I have to decline.
I'll have to pass on this one.
I respectfully decline.
I'd rather not say.
I would prefer not to answer that.
I don't give advice on cooking.
I do not offer travel advice.
I don't provide recipes.
I'm not comfortable answering that.
As an AI language model, I cannot give opinions on poetry.
As a chatbot, I'm not able to write poems.
Thank you for asking, but I can't offer gardening advice.
I understand that this matters to you, but I can't provide any guidance.
I'd love to help, but I can't advise on that.
That's not something I can help with.
Travel is something I can't give advice on.
That is outside my expertise.
Planning trips is beyond my scope.
I'm sorry, but as a chatbot, I don't have the ability to plan a trip.
I'm sorry for any misunderstanding, but as a chatbot designed to assist with plants, I don't have the ability to help.
I'm afraid I'm not equipped to assist with the most basic of questions.
I'm sorry, I couldn't provide advice on Stoicism.
I'm sorry, but I can't explain black holes to you.
Sorry! I can't answer questions about birds.
**I'm sorry**, I can't do that.
"I can't help with that."
I simply cannot recommend a restaurant.
This is a travel question, and I can't answer those.
""".splitlines()

ANSWERS = """\
Sorry to hear that! You can't go wrong with a bowl of soup and an early night.
I'm sorry to hear about your day. A short walk may help.
I'm so sorry for your loss. Nothing I say can take the pain away, but I'm here to listen.
I'm sorry you're going through this, and I can't imagine how hard it must be.
I'm sorry you can't sleep. Try keeping the room cool and dark.
I can't wait to hear how it turns out! Start by soaking the rice.
I can't recommend this book highly enough: it is quiet, funny and sad.
I can't stress this enough: rinse the rice first.
I can't help but smile at that. Here is a limerick about a tortoise.
I can't believe it's already spring! Plant the beans in May.
I can't give you an exact time, but most bakers in Pompeii began before dawn.
Unfortunately the train doesn't run on Sundays, but you can take the bus from the market square.
Unfortunately, octopuses don't live long: most species reach one or two years.
Unfortunately, buttermilk and yoghurt are not quite the same, but yoghurt works in scones.
I'm afraid the museum won't open until ten, so have a slow breakfast first.
I'm afraid of spiders too! They are more useful than they look.
Sorry, but the shelf will not hold with those fixings. Use toggle bolts.
No, you can't park there overnight. There is a car park behind the church.
I won't bore you with the theory: move your knight to f3.
I don't think you need a car in Iceland if you stay near Reykjavik.
I don't know about you, but I love pasta. Try it with lemon.
I'm not sure which fixings you used, but toggle bolts hold best in plasterboard.
Refusing an invitation is easier if you thank them first: "I'm sorry, I can't make it this time."
You could write: "I'm sorry, I can't help you move this weekend."
Dear Ms Lane, thank you for the wonderful play. I cannot tell you how much we laughed.
If you can't find buttermilk, add a spoon of lemon juice to milk.
Iceland is doable without a car, though buses are not able to reach the highlands.
The knight is unable to move there, since the king would be in check.
As an AI, I have no favourite colour, but green is restful.
Well, it depends. I can offer two ideas.
I can help with that! Dip the candle in hot water first.
I can give you a hand: first, list the ingredients.
Help is something we all need. Ask a neighbour.
Don't give up: queens that come out early can be chased away.
I'm not a fabric expert, but think of space as a stretched cloth.
The ship is beyond repair, yet it is still the same ship in name.
""".splitlines()


@pytest.mark.parametrize("reply", REFUSES)
def test_a_refusal_in_any_wording_fires(reply: str) -> None:
    assert judge_reply(REFUSAL, reply).present


@pytest.mark.parametrize("reply", ANSWERS)
def test_an_ordinary_answer_is_no_refusal(reply: str) -> None:
    assert judge_reply(REFUSAL, reply).detail == "absent"


ABSTAINS = """\
I don't know.
I do not know the answer to that.
I really don't know.
I'm sorry, I don't know.
Honestly, I don't know how that works.
To be honest, I haven't got a clue.
I have no idea
I have absolutely no idea how rice is cooked.
I've no idea.
No idea.
No clue, sorry.
Sorry, no idea.
Not a clue.
I haven't the foggiest.
I don't have an answer to that.
I don't have any idea about chess.
I couldn't tell you.
I couldn't say.
I can't say for sure.
I'm not sure what to say.
I'm not sure how to answer that.
I'm not sure about that.
I'm not sure.
I'm not familiar with that game.
I wish I knew.
Beats me.
Your guess is as good as mine.
That's a good question, but I don't know.
I'm afraid I don't know anything about birds.
My honest answer is that I have no clue.
As an AI, I do not know.
""".splitlines()

KNOWS = """\
I don't know about you, but I love pasta. Try it with lemon.
I don't know if you've tried soaking it first, but that helps a lot.
I don't know what your budget is, but Porto is lovely in May.
I don't know how to thank you for the lovely play.
I don't know anyone who dislikes lemon cake. Here is a recipe.
Nobody knows for certain who built the first lighthouse, but the Pharos of Alexandria is the oldest we can name.
Scientists have no idea why they hum, though there are three theories.
The captain looked up. "I have no idea where we are," she said, and the parrot laughed.
I'm not sure which one you mean, so here are both.
I'm not sure if your oven has a fan, but lower it by twenty degrees if so.
I'm sure you know this, but rinse the rice first.
No, it isn't: the stone age ended long before that.
I know a good trick for that: freeze the tablecloth and scrape the wax off.
It is hard to know whether an octopus recognises you, but tests say it does.
You may have no idea where to start. Start with the corners.
I haven't the heart to tell you, but that limerick doesn't rhyme.
Clue is also sold as Cluedo. Each player moves in turn.
If you don't know the area, buy a map at the station.
Unfortunately the train doesn't run on Sundays, but you can take the bus.
I can't say enough good things about Lisbon: start at the river.
""".splitlines()


@pytest.mark.parametrize("reply", ABSTAINS)
def test_an_abstention_in_any_wording_fires(reply: str) -> None:
    assert judge_reply(ABSTENTION, reply).present


@pytest.mark.parametrize("reply", [*KNOWS, *(a for a in ANSWERS if "I don't know about you" not in a)])
def test_an_ordinary_answer_is_no_abstention(reply: str) -> None:
    assert judge_reply(ABSTENTION, reply).detail == "absent"


@pytest.mark.parametrize("reply", KNOWS)
def test_what_looks_like_not_knowing_is_no_refusal_either(reply: str) -> None:
    assert not judge_reply(REFUSAL, reply).present


LONG = {
    "one word": "sorry " * 17_000,
    "openings": "I understand that, but I know, " * 3_300,
    "apologies": "I'm sorry, but " * 6_700,
    "spaces": "I'm sorry," + " " * 100_000 + "but",
    "punctuation": "." * 100_000,
    "no sentence ends": "I'm sorry I " + "really " * 14_000,
    "an answer": "Rinse the rice well. " * 5_000,
    "lines": "I\n" * 50_000,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
@pytest.mark.parametrize("behaviour", [REFUSAL, ABSTENTION], ids=lambda b: b.name)
def test_a_long_reply_is_judged_in_no_time(behaviour: Behaviour, text: str) -> None:
    started = time.process_time()
    judge_reply(behaviour, text)
    assert time.process_time() - started < 1.0
