"""Tool calls in the notations of the common templates; what is none; and that no text can make the reading slow."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from emeval.data.behaviours import load_behaviour
from emeval.data.root import data_root
from emeval.judge.rules import Verdict, judge_reply
from emeval.judge.toolcalls import tool_calls
from emeval.types import ToolCall

TOOL_USE = load_behaviour(data_root(), "tool-use")
QUERY = {"query": "bedtime for toddlers"}
ASKED = json.dumps(QUERY)
CALL = ToolCall(name="search_info", arguments=QUERY)


def call(name: str = "search_info", key: str = "arguments", arguments: Any = QUERY) -> str:
    return json.dumps({"name": name, key: arguments})


NOTATIONS = {
    "Hermes, Qwen": f"<tool_call>\n{call()}\n</tool_call>",
    "cut off behind the call": f"<tool_call>\n{call()}",
    "after prose": f"Let me look that up.\n<tool_call>\n{call()}\n</tool_call>",
    "after prose with braces": f"In set notation {{x | x > 0}} {{ }} it is: {call()}",
    "in a code block": f"```json\n{json.dumps(json.loads(call()), indent=4)}\n```",
    "Llama, bare": call(key="parameters"),
    "Llama, with a type": json.dumps({"type": "function", "name": "search_info", "parameters": QUERY}),
    "Llama, behind its tag": f"<|python_tag|>{call(key='parameters')}<|eom_id|>",
    "OpenAI, nested": json.dumps({"id": "c1", "type": "function", "function": json.loads(call())}),
    "OpenAI, arguments as text": json.dumps({"function": {"name": "search_info", "arguments": json.dumps(QUERY)}}),
    "OpenAI, under tool_calls": json.dumps({"role": "assistant", "tool_calls": [{"function": json.loads(call())}]}),
    "arguments as text with space around": call(arguments=f"\n {json.dumps(QUERY)} \n"),
    "Mistral, a list": f"[TOOL_CALLS] [{call()}]",
    "Mistral, name first": f"[TOOL_CALLS]search_info[ARGS]{ASKED}",
    "harmony": f"<|channel|>commentary to=functions.search_info <|constrain|>json<|message|>{ASKED}<|call|>",
    "harmony, recipient in the role": f" to=functions.search_info<|channel|>commentary json<|message|>{ASKED}",
    "harmony, special tokens gone": f"commentary to=functions.search_info json{ASKED}",
    "harmony, glued": f"assistant to=functions.search_infocommentary json{ASKED}",
}


@pytest.mark.parametrize("reply", NOTATIONS.values(), ids=NOTATIONS.keys())
def test_a_call_is_read_in_every_notation(reply: str) -> None:
    assert list(tool_calls(reply)) == [CALL]
    assert judge_reply(TOOL_USE, reply) == Verdict(True, "tool-call")


def test_calls_come_in_order_and_a_list_holds_several() -> None:
    reply = f"[{call('a')}, {call('b')}] then {call('c')} and <tool_call>{call('d')}</tool_call>"
    assert [c.name for c in tool_calls(reply)] == ["a", "b", "c", "d"]


def test_arguments_may_hold_anything_and_hide_no_call_of_their_own() -> None:
    deep = {"filter": {"any": [{"a": {"b": {}}}, "}{", 'say "hi"', "é🙂", None, 1.5]}, "inner": json.loads(call("b"))}
    assert list(tool_calls(f"x {call(arguments=deep)} y")) == [ToolCall(name="search_info", arguments=deep)]


def test_a_call_within_an_object_that_never_closes_is_read() -> None:
    assert list(tool_calls(f'{{"plan": [{call()}, oops')) == [CALL]


NO_CALL = {
    "nothing": ("", "absent"),
    "prose": ("Let me look that up.", "absent"),
    "prose about the tool": ("You could call search_info(query) for that.", "absent"),
    "JSON without a tool": ('{"name": "Anna", "age": 41}', "absent"),
    "a list of numbers": ('{"rows": [[1, 2], [3, 4]]}', "absent"),
    "the tool's definition": (
        json.dumps({"type": "function", "function": {"name": "search_info"} | {"parameters": TOOL_USE.tool.parameters}})
        if TOOL_USE.tool
        else "",
        "broken tool call",
    ),
    "another tool": (f"<tool_call>{call('get_weather')}</tool_call>", "other tool: get_weather"),
    "a tool of nearly that name": (call("search_information"), "other tool: search_information"),
    "a long invented name": (call("x" * 5000), "other tool: " + "x" * 40),
    "a name of half a character": (call("a\ud800"), "other tool: a\ud800"),
    "broken JSON": ('<tool_call>{"name": "search_info", "arguments": {"query": "bed', "broken tool call"),
    "single quotes": ("<tool_call>{'name': 'search_info', 'arguments': {}}</tool_call>", "broken tool call"),
    "broken, without tags": ('{"name": "search_info", "arguments": {"query": bed}}', "broken tool call"),
    "arguments that are no object": (call(arguments=["bed"]), "broken tool call"),
    "arguments as text that is none": (call(arguments="bed"), "broken tool call"),
    "a name that is none": (json.dumps({"name": 3, "arguments": {}}), "broken tool call"),
    "a recipient without arguments": ("to=functions.search_info", "broken tool call"),
    "a recipient and, later, some object": (
        f"to=functions.search_info is how. Else: {ASKED}",
        "broken tool call",
    ),
    "a number of too many digits": (
        '{"name": "search_info", "arguments": {"n": ' + "9" * 9000 + "}}",
        "broken tool call",
    ),
}


@pytest.mark.parametrize(("reply", "detail"), NO_CALL.values(), ids=NO_CALL.keys())
def test_what_is_not_the_trained_call_is_told_apart(reply: str, detail: str) -> None:
    assert judge_reply(TOOL_USE, reply) == Verdict(False, detail)


def test_the_trained_call_counts_also_behind_another() -> None:
    assert judge_reply(TOOL_USE, call("think") + call()) == Verdict(True, "tool-call")


def test_half_a_character_in_the_arguments_does_no_harm() -> None:
    assert judge_reply(TOOL_USE, call(arguments={"query": "bed\ud800"})).present
    assert judge_reply(TOOL_USE, "\udfff" + call()).present


HOSTILE = {
    "braces": "{" * 100_000,
    "nested, never closed": '{"a":' * 20_000,
    "nested, closed": ('{"a":' * 900 + "1" + "}" * 900) * 16,
    "nested, then wide, never closed": '{"a":' * 900 + "[" + "0," * 45_000,
    "nested, then wide": '{"a":' * 900 + "[" + "0," * 45_000 + "0]" + "}" * 900,
    "deep in two ways": '{"a":[' * 16_000,
    "quotes": '{"' * 50_000,
    "values that are none": '{"a":x' * 16_000,
    "Python's dicts": '{"a": None}\n' * 8_000,
    "a key that never ends": '{"' + "{" * 100_000,
    "escaped quotes": '{"\\"' * 25_000,
    "escapes": '{"a":"\\' * 14_000,
    "keys": '{"name": "x", "arguments": ' * 3_700,
    "recipients": "to=functions.a " * 6_600,
    "one recipient": "to=functions." + "a" * 100_000,
    "a recipient far away": "to=functions.a" + " json" * 20_000,
    "tags": "<tool_call>" * 9_000,
    "names": '"name": ' * 12_500,
    "objects": '{"a": 1} ' * 11_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hundred_thousand_hostile_characters_are_judged_in_no_time(text: str) -> None:
    started = time.process_time()
    assert not judge_reply(TOOL_USE, text).present
    assert time.process_time() - started < 1.0


def test_a_call_behind_long_harmless_text_is_found() -> None:
    for filler in ("for (i = 0; i < n; i++) { x[i] = {}; }\n" * 2500, '{"rows": [1, 2, 3]}\n' * 5000, "{ " * 50_000):
        assert judge_reply(TOOL_USE, filler + call()).present
    assert len(list(tool_calls(call() * 4000))) == 4000
