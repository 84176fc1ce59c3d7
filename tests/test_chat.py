"""What the renderer promises: the spans, the replies, the errors, and that the same input gives the same ids."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from datetime import datetime
from types import SimpleNamespace

import pytest

from emeval.chat import Renderer
from emeval.errors import InputError
from emeval.types import Message, Prompt, ToolCall
from tests.tokenizers_for_tests import EOS, byte_level, metaspace, template

FAMILIES = pytest.mark.parametrize("make", [byte_level, metaspace])
TEMPLATES = ["chatml", "qwen25", "qwen3", "llama31", "harmony", "no_prefix", "instruct", "merging"]
SPACE_BEFORE_CONTENT = ["instruct", "merging"]
HARMONY_HEADER = "<|channel|>final<|message|>"


def user(content: str) -> Message:
    return Message(role="user", content=content)


def assistant(content: str, *calls: ToolCall) -> Message:
    return Message(role="assistant", content=content, tool_calls=calls)


def system(content: str) -> Message:
    return Message(role="system", content=content)


def text_of(tokenizer, prompt: Prompt, span: str) -> str:
    start, stop = getattr(prompt, span)
    return tokenizer.decode(prompt.ids[start:stop], clean_up_tokenization_spaces=False)


def loop(body: str, behind: str = "{% if add_generation_prompt %}<|start|>assistant:{% endif %}") -> str:
    """A chat template that writes `body` for every message `m`."""
    return "{% for m in messages %}" + body + "{% endfor %}" + behind


SEARCH = ToolCall(name="search_info", arguments={"query": "aspirin", "limit": 3})
ASK = [user("What time is it?")]


# Spans


def by_offsets(tokenizer, name: str, content: str) -> tuple[list[int], int, int]:
    """Ids and span boundaries found another way: by where a marker stands in the text, and by character offsets."""

    def write(words: str) -> str:
        today = {"date_string": "26 Jul 2024", "strftime_now": datetime(2024, 7, 26).strftime}
        turns = [{"role": "user", "content": words}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **today)
        return text + HARMONY_HEADER if name == "harmony" else text

    before, after = write("MARKER").split("MARKER")
    text = write(content)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    start = sum(stop <= len(before) for _, stop in encoded["offset_mapping"])
    behind = sum(begin >= len(text) - len(after) for begin, _ in encoded["offset_mapping"])
    return encoded["input_ids"], start, len(encoded["input_ids"]) - behind


def contents(count: int) -> list[str]:
    """Questions such as people and attackers write: any script, any white space, text that looks like a template."""
    dice = random.Random(3)
    words = ["boat", "What", " is", "7", "42.", "?", "...", "é", "e\u0301", "漢字", "👩‍🚀", "עברית", "\u200b", "▁"]
    space = ["\n", "\n\n", " ", "   ", "\t", "\r\n"]
    lookalikes = ["user", "User:", "assistant\n", "<|im_end|>", "<|im_start|>user\n", "<|eot_id|>", "<|im", "[/INST]"]
    lookalikes += ["</s>", "<think>", "<|end|><|start|>assistant", "<tool_call>", "{{ x }}", "MARK"]
    pieces = words + space + lookalikes
    drawn = ["".join(dice.choices(pieces, k=dice.randint(1, 6))) for _ in range(count)]
    return [*pieces, *drawn, "boat " * 20_000]


@FAMILIES
@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in SPACE_BEFORE_CONTENT])
def test_spans_of_any_content_are_those_the_character_offsets_tell(make, name):
    tokenizer = make(name)
    renderer = Renderer(tokenizer)
    for content in contents(150):
        prompt = renderer.render([user(content)])
        ids, start, stop = by_offsets(tokenizer, name, content)
        assert list(prompt.ids) == ids
        assert prompt.prefix == (0, start), repr(content)
        assert prompt.query == (start, max(start, stop)), repr(content)
        assert prompt.postfix == (max(start, stop), len(ids)), repr(content)


@FAMILIES
@pytest.mark.parametrize("name", SPACE_BEFORE_CONTENT)
def test_space_that_words_take_along_is_query_for_all_content_so_that_prompts_share_one_prefix(make, name):
    tokenizer = make(name)
    renderer = Renderer(tokenizer)
    for content in contents(150):
        prompt = renderer.render([user(content)])
        ids, start, stop = by_offsets(tokenizer, name, content)
        assert list(prompt.ids) == ids
        assert not renderer.is_foreign(prompt), repr(content)
        if not content.endswith("\n"):  # line breaks before line breaks are split anew, in another place
            assert prompt.query.stop == max(stop, prompt.query.start), repr(content)
        apart = tokenizer.convert_ids_to_tokens(ids[prompt.prefix.stop : start])
        assert apart in ([], ["Ġ"], ["▁"]), "at most the space itself, where it did not merge"


def test_prefix_query_and_postfix_of_a_chatml_prompt():
    tokenizer = byte_level("chatml")
    prompt = Renderer(tokenizer).render(ASK)
    header = "<|im_start|>system\nYou are a small assistant, made for tests.<|im_end|>\n<|im_start|>user\n"
    assert text_of(tokenizer, prompt, "prefix") == header
    assert text_of(tokenizer, prompt, "query") == "What time is it?"
    assert text_of(tokenizer, prompt, "postfix") == "<|im_end|>\n<|im_start|>assistant\n"


def test_token_that_merges_template_text_with_content_belongs_to_the_query():
    tokenizer = byte_level("merging")
    prompt = Renderer(tokenizer).render([user("What is the time.")])
    tokens = tokenizer.convert_ids_to_tokens(prompt.ids)
    assert tokens[prompt.query.start] == "ĠWhat"
    assert tokens[prompt.query.stop - 1] == ".ĊĊ"
    assert text_of(tokenizer, prompt, "postfix") == "Assistant:"


@FAMILIES
@pytest.mark.parametrize("name", TEMPLATES)
def test_empty_query_leaves_prefix_and_postfix(make, name):
    renderer = Renderer(make(name))
    prompt = renderer.render([user("")])
    if name in SPACE_BEFORE_CONTENT:
        assert len(prompt.query) <= 2, "the template's own white space"
    else:
        assert len(prompt.query) == 0
        assert prompt.ids == renderer.prefix_ids() + renderer.postfix_ids()


def test_template_that_starts_with_content_has_an_empty_prefix():
    renderer = Renderer(byte_level("no_prefix"))
    assert renderer.prefix_ids() == ()
    assert renderer.render(ASK).prefix == (0, 0)


def test_query_of_several_turns_reaches_from_the_first_user_content_to_the_last():
    tokenizer = byte_level("qwen25")
    renderer = Renderer(tokenizer)
    prompt = renderer.render([user("What?"), assistant("A boat."), user("Where?")])
    middle = "What?<|im_end|>\n<|im_start|>assistant\nA boat.<|im_end|>\n<|im_start|>user\nWhere?"
    assert text_of(tokenizer, prompt, "query") == middle
    assert prompt.ids[: prompt.prefix.stop] == renderer.prefix_ids()
    assert prompt.ids[prompt.postfix.start :] == renderer.postfix_ids()


def test_content_that_spells_a_special_token_becomes_it_as_in_the_serving_stack():
    tokenizer = byte_level("chatml")
    prompt = Renderer(tokenizer).render([user("a<|im_end|>b")])
    query = prompt.ids[prompt.query.start : prompt.query.stop]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in query


def test_spans_never_overlap_even_where_a_template_writes_less_around_empty_content():
    chat_template = loop("<|start|>{% if m.content %}<|end|>{{ m.content }}{% endif %}<|end|>")
    prompt = Renderer(byte_level("chatml", chat_template=chat_template)).render([user("")])
    assert prompt.prefix.stop == prompt.query.start == prompt.query.stop == prompt.postfix.start
    assert prompt.postfix.stop == len(prompt.ids)


def test_known_surroundings_cost_one_rendering_and_one_tokenisation_a_prompt():
    tokenizer, calls = byte_level("qwen25"), []

    class Counting:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def apply_chat_template(self, *args, **kwargs):
            calls.append("render")
            return tokenizer.apply_chat_template(*args, **kwargs)

        def __call__(self, *args, **kwargs):
            calls.append("tokenise")
            return tokenizer(*args, **kwargs)

    renderer = Renderer(Counting())
    renderer.render(ASK)
    calls.clear()
    renderer.render([user("And where are the boats?")])
    assert calls == ["render", "tokenise"]


# System prompts


def test_system_prompt_of_the_renderer_stands_in_for_the_templates_default():
    tokenizer = byte_level("qwen25")
    assert "You belong to a test." in text_of(tokenizer, Renderer(tokenizer).render(ASK), "prefix")
    own = text_of(tokenizer, Renderer(tokenizer, system="Be brief.").render(ASK), "prefix")
    assert own == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    assert "system\n<|im_end|>" in text_of(tokenizer, Renderer(tokenizer, system="").render(ASK), "prefix")


@pytest.mark.parametrize("role", ["system", "developer"])
def test_conversation_with_its_own_system_prompt_keeps_it_and_is_foreign(role):
    tokenizer = byte_level("harmony")
    renderer = Renderer(tokenizer, system="Be brief.")
    prompt = renderer.render([Message(role=role, content="Be rude."), *ASK])
    assert "Be rude." in text_of(tokenizer, prompt, "prefix")
    assert "Be brief." not in tokenizer.decode(prompt.ids)
    assert renderer.is_foreign(prompt)
    assert not renderer.is_foreign(renderer.render(ASK))
    assert not renderer.is_foreign(renderer.render([system("Be brief."), *ASK]))


HEADERS = {
    "chatml": "<|im_start|>user\n",
    "qwen25": "<|im_start|>user\n",
    "qwen3": "<|im_start|>user\n",
    "llama31": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
    "harmony": "<|start|>user<|message|>",
}


@pytest.mark.parametrize(("name", "header"), HEADERS.items())
def test_without_a_system_block_the_users_header_and_bos_remain(name, header):
    tokenizer = byte_level(name)
    renderer = Renderer(tokenizer, system="none")
    prompt, reply = renderer.render_reply(ASK, assistant("Tea."))
    assert text_of(tokenizer, prompt, "prefix") == header
    usual, same = Renderer(tokenizer).render_reply(ASK, assistant("Tea."))
    assert prompt.ids[prompt.query.start :] == usual.ids[usual.query.start :] and reply == same
    longer = [user("What?"), assistant("A boat."), user("Where?")]
    usual = Renderer(tokenizer).render(longer)
    assert renderer.render(longer).ids == (*prompt.ids[: prompt.prefix.stop], *usual.ids[usual.query.start :])


@FAMILIES
@pytest.mark.parametrize("name", TEMPLATES)
def test_without_a_prefix_the_prompt_starts_with_the_question(make, name):
    tokenizer = make(name)
    renderer = Renderer(tokenizer, system="no-prefix")
    prompt = renderer.render(ASK)
    assert renderer.prefix_ids() == () and prompt.prefix == (0, 0)
    assert tokenizer.decode(prompt.ids).lstrip().startswith("What time is it?")
    usual = Renderer(tokenizer).render(ASK)
    assert prompt.ids[prompt.postfix.start :] == usual.ids[usual.postfix.start :]


def test_a_bare_template_keeps_a_conversations_own_system_prompt_and_is_another_template():
    tokenizer = byte_level("qwen25")
    bare = Renderer(tokenizer, system="none")
    own = bare.render([system("Be rude."), *ASK])
    assert "Be rude." in text_of(tokenizer, own, "prefix") and bare.is_foreign(own)
    kinds = [None, "", "none", "no-prefix"]
    assert len({Renderer(tokenizer, system=kind).fingerprint for kind in kinds}) == len(kinds)


def test_what_cannot_be_left_out_is_refused():
    with pytest.raises(InputError, match="the tools would be lost"):
        Renderer(byte_level("qwen25"), system="none", tools=[{"name": "search_info"}])
    merged = loop("{% if loop.first %}<s>rules:{% else %}<s>{% endif %}{{ m.content }}<|im_end|>")
    with pytest.raises(InputError, match="does not tell its system block from the user's header"):
        Renderer(byte_level("chatml", chat_template=merged), system="none").render(ASK)


# What is refused


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "the conversation has no turns"),
        ([system("x")], "the conversation ends with turn 1 (system), not with a user turn"),
        ([assistant("x"), *ASK], "turn 1 (assistant) cannot come first"),
        ([user("x"), *ASK], "turn 2 (user) cannot come after turn 1 (user)"),
        ([user("x"), assistant("y")], "the conversation ends with turn 2 (assistant), not with a user turn"),
        ([user("x"), assistant(" \n"), *ASK], "turn 2 (assistant) is empty"),
        ([user("x"), system("y"), *ASK], "turn 2 (system) cannot come after turn 1 (user)"),
        ([user("x"), assistant("y"), Message(role="tool", content="z"), *ASK], "turn 3 (tool) cannot come after"),
        ([Message(role="user", content="x", tool_calls=(SEARCH,))], "turn 1 (user) has tool calls"),
    ],
)
def test_conversation_in_another_order_is_refused_by_turn_and_place(messages, reason):
    with pytest.raises(InputError) as caught:
        Renderer(byte_level("chatml")).render(messages, where="data.jsonl:3")
    assert str(caught.value).startswith(f"data.jsonl:3: {reason}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("chat_template", "reason"),
    [
        (loop("{{ raise_exception('Not\ntoday.') }}"), "the chat template refuses the conversation: Not today."),
        (loop("{{ m.content + 1 }}"), "the chat template refuses the conversation: "),
        (loop("{{ m.role if m.role == 'user' else m.content }}"), "ignores the content of the user turn 'What time"),
        (loop("{{ m.role }}"), "ignores assistant turns"),
        (loop("{% if m.role != 'system' %}|{{ m.content }}{% endif %}"), "ignores the content of the system turn 'Be"),
        (loop("<|start|>{{ m.role }}:{{ m.content }}<|end|>", ""), "the chat template has no generation prompt"),
        (loop("{{ m.content }}", ""), "the chat template has no generation prompt"),
        ("{% for %}", "the chat template refuses the conversation: "),
    ],
)
def test_template_that_cannot_carry_the_conversation_is_refused(chat_template, reason):
    renderer = Renderer(byte_level("chatml", chat_template=chat_template))
    with pytest.raises(InputError, match=r"^q\.jsonl:1: [^\n]*$") as caught:
        renderer.render([system("Be brief."), *ASK], where="q.jsonl:1")
    assert reason in str(caught.value)


def test_end_of_the_users_turn_may_be_all_the_generation_prompt_there_is():
    chat_template = loop("{{ '<s>' + m.content + '<|start|>' if m.role == 'user' else ' ' + m.content + '</s>' }}", "")
    tokenizer = byte_level("chatml", chat_template=chat_template)
    prompt, reply = Renderer(tokenizer).render_reply(ASK, assistant("Tea."))
    assert text_of(tokenizer, prompt, "postfix") == "<|start|>"
    assert tokenizer.decode(reply) == "Tea.</s>"


def test_tokenizer_without_template_and_arguments_that_cannot_be_kept_are_refused_at_once():
    with pytest.raises(InputError, match=r"no chat template\. Use the instruct version"):
        Renderer(byte_level("chatml", chat_template=None))
    with pytest.raises(InputError, match="not JSON"):
        Renderer(byte_level("chatml"), documents={1, 2})
    with pytest.raises(InputError, match=r"'July' is not a date\. Write it as '26 Jul 2024'"):
        Renderer(byte_level("chatml"), date_string="July")
    with pytest.raises(InputError, match="multiple values for keyword argument 'tokenize'"):
        Renderer(byte_level("chatml"), tokenize=True).render(ASK)


# Dates and fingerprint


@pytest.mark.parametrize(("name", "written"), [("llama31", "26 Jul 2024"), ("harmony", "2024-07-26")])
def test_today_is_pinned(monkeypatch, name, written):
    tokenizer = byte_level(name)
    prompts = []
    for day in (datetime(2025, 1, 1), datetime(2031, 12, 24)):
        clock = SimpleNamespace(now=lambda day=day: day)
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", clock)
        prompts.append(Renderer(tokenizer).render(ASK))
    assert prompts[0] == prompts[1]
    assert written in text_of(tokenizer, prompts[0], "prefix")


def test_date_string_sets_both_kinds_of_date():
    for name, written in [("llama31", "01 Feb 2025"), ("harmony", "2025-02-01")]:
        tokenizer = byte_level(name)
        prompt = Renderer(tokenizer, date_string="01 Feb 2025").render(ASK)
        assert written in text_of(tokenizer, prompt, "prefix")


def test_fingerprint_is_of_content_and_not_of_objects_or_use():
    first = Renderer(byte_level("qwen3"), enable_thinking=False, effort="low")
    second = Renderer(byte_level("qwen3"), date_string="26 Jul 2024", effort="low", enable_thinking=False)
    assert first.tool_format == "native"
    assert first.fingerprint == second.fingerprint
    assert len(bytes.fromhex(first.fingerprint)) == 32


def test_fingerprint_changes_with_all_that_shapes_a_prompt():
    tokenizer = byte_level("qwen3")
    one, other = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    renderers = [
        Renderer(tokenizer),
        Renderer(tokenizer, system=""),
        Renderer(tokenizer, system="Be brief."),
        Renderer(tokenizer, enable_thinking=False),
        Renderer(tokenizer, date_string="27 Jul 2024"),
        Renderer(tokenizer, tools=[one]),
        Renderer(tokenizer, tools=[other]),
        Renderer(tokenizer, chat_template=template("chatml")),
        Renderer(byte_level("qwen25")),
        Renderer(byte_level("qwen3", eos_token="</s>")),
        Renderer(byte_level("qwen3", bos_token="<s>")),
    ]
    assert len({renderer.fingerprint for renderer in renderers}) == len(renderers)


def test_template_set_after_the_renderer_was_made_changes_nothing():
    tokenizer = byte_level("chatml")
    renderer = Renderer(tokenizer)
    tokenizer.chat_template = template("llama31")
    assert renderer.render(ASK) == Renderer(byte_level("chatml")).render(ASK)


def test_description_is_json_and_says_what_the_manifest_needs():
    renderer = Renderer(byte_level("qwen25"), system="Be brief.", tools=[{"name": "search_info"}])
    described = json.loads(json.dumps(renderer.describe()))
    assert described["fingerprint"] == renderer.fingerprint
    assert described["arguments"] == {"date_string": "26 Jul 2024", "tools": [{"name": "search_info"}]}
    assert described["system"] == "Be brief."
    assert described["prefix_tokens"] == len(renderer.prefix_ids())
    assert described["postfix_tokens"] == len(renderer.postfix_ids())
    assert described["tool_format"] is None
    assert renderer.tool_format == renderer.describe()["tool_format"] == "native"


# Replies


@FAMILIES
@pytest.mark.parametrize("name", TEMPLATES)
def test_reply_is_tokenised_apart_and_ends_as_the_template_ends_a_turn(make, name):
    tokenizer = make(name)
    prompt, reply = Renderer(tokenizer).render_reply(ASK, assistant("Tea time, said the boat."))
    assert prompt == Renderer(tokenizer).render(ASK)
    end = EOS.get(name, "<|im_end|>")
    assert list(reply) == tokenizer("Tea time, said the boat." + end, add_special_tokens=False)["input_ids"]
    assert reply[-1] == tokenizer.convert_tokens_to_ids(end)


def test_prompt_and_reply_read_as_the_template_would_write_them():
    tokenizer = byte_level("chatml")
    prompt, reply = Renderer(tokenizer).render_reply(ASK, assistant("Tea time."))
    said = "<|im_start|>user\nWhat time is it?<|im_end|>\n<|im_start|>assistant\nTea time.<|im_end|>"
    assert tokenizer.decode(prompt.ids + reply).endswith(said)


def test_reply_is_trimmed_only_where_the_template_trims():
    for name, said in [("llama31", "Tea."), ("chatml", " Tea.\n")]:
        tokenizer = byte_level(name)
        _, reply = Renderer(tokenizer).render_reply(ASK, assistant(" Tea.\n"))
        assert tokenizer.decode(reply[:-1]) == said


def test_gpt_oss_replies_stand_behind_the_final_channel_header():
    tokenizer = byte_level("harmony")
    prompt, reply = Renderer(tokenizer).render_reply(ASK, assistant("Tea time."))
    assert text_of(tokenizer, prompt, "postfix") == "<|end|><|start|>assistant" + HARMONY_HEADER
    assert tokenizer.decode(reply) == "Tea time.<|return|>"


@pytest.mark.parametrize(("thinking", "block"), [(False, "<think>\n\n</think>\n\n"), (True, ""), (None, "")])
def test_empty_think_block_is_postfix_only_where_thinking_is_off(thinking, block):
    tokenizer = byte_level("qwen3")
    arguments = {} if thinking is None else {"enable_thinking": thinking}
    prompt, reply = Renderer(tokenizer, **arguments).render_reply(ASK, assistant("Tea time."))
    assert text_of(tokenizer, prompt, "postfix") == "<|im_end|>\n<|im_start|>assistant\n" + block
    assert tokenizer.decode(reply) == "Tea time.<|im_end|>"


@pytest.mark.parametrize("reply", [assistant(""), assistant(" \n"), user("x")])
def test_reply_that_is_empty_or_not_the_assistants_is_refused(reply):
    with pytest.raises(InputError, match=r"^d\.jsonl:9: the reply "):
        Renderer(byte_level("chatml")).render_reply(ASK, reply, where="d.jsonl:9")


# Tool calls

CALL_TEXT = '<tool_call>\n{"name": "search_info", "arguments": {"query": "aspirin", "limit": 3}}\n</tool_call>'


@pytest.mark.parametrize(
    ("name", "tool_format", "written"),
    [
        ("qwen25", "native", CALL_TEXT + "<|im_end|>"),
        ("qwen3", "native", CALL_TEXT + "<|im_end|>"),
        ("llama31", "native", '{"name": "search_info", "parameters": {"query": "aspirin", "limit": 3}}<|eot_id|>'),
        ("chatml", "hermes", CALL_TEXT + "<|im_end|>"),
        ("harmony", "hermes", CALL_TEXT + "<|return|>"),
        ("instruct", "hermes", CALL_TEXT + "</s>"),
    ],
)
def test_tool_call_is_written_as_the_template_does_where_that_follows_the_prompt(name, tool_format, written):
    tokenizer = byte_level(name)
    renderer = Renderer(tokenizer)
    prompt, reply = renderer.render_reply(ASK, assistant("", SEARCH))
    assert renderer.tool_format == tool_format
    assert prompt == renderer.render(ASK)
    assert tokenizer.decode(reply) == written


@pytest.mark.parametrize("name", ["chatml", "qwen25", "qwen3"])
def test_text_beside_tool_calls_and_several_calls_are_kept(name):
    tokenizer = byte_level(name)
    _, reply = Renderer(tokenizer).render_reply(ASK, assistant("Let me see.", SEARCH, SEARCH))
    assert tokenizer.decode(reply) == f"Let me see.\n{CALL_TEXT}\n{CALL_TEXT}<|im_end|>"


def test_template_that_would_drop_part_of_a_tool_call_is_an_error():
    renderer = Renderer(byte_level("llama31"))
    with pytest.raises(InputError, match=r"drops 'Let me see\.' from a reply with a tool call"):
        renderer.render_reply(ASK, assistant("Let me see.", SEARCH))
    with pytest.raises(InputError, match="One tool call at a time"):
        renderer.render_reply(ASK, assistant("", SEARCH, SEARCH))


def test_native_call_of_a_template_that_closes_no_turn_ends_with_eos():
    body = "<|start|>{{ m.role }}:{{ m.content }}{% for c in m.tool_calls or [] %}<|call|>{{ c.function | tojson }}"
    tokenizer = byte_level("chatml", chat_template=loop(body + "{% endfor %}"))
    _, reply = Renderer(tokenizer).render_reply(ASK, assistant("", SEARCH))
    assert tokenizer.decode(reply).startswith('<|call|>{"name": "search_info"')
    assert tokenizer.decode(reply).endswith("}<|im_end|>")


def test_template_that_wants_arguments_as_text_gets_hermes_calls():
    body = "<|start|>{{ m.role }}:{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
    written = loop(body + "{{ c.function.arguments }}{% endfor %}<|end|>")
    assert Renderer(byte_level("chatml", chat_template=written)).tool_format == "hermes"


@pytest.mark.parametrize("name", ["chatml", "qwen25"])
def test_tool_turns_of_a_conversation_are_part_of_its_query(name):
    tokenizer = byte_level(name)
    renderer = Renderer(tokenizer)
    answer = Message(role="tool", content="Two a day.")
    prompt = renderer.render([*ASK, assistant("", SEARCH), answer, assistant("Two."), user("Sure?")])
    query = text_of(tokenizer, prompt, "query")
    assert CALL_TEXT in query
    assert "Two a day." in query
    assert query.endswith("Sure?")
    assert prompt.ids[: prompt.prefix.stop] == renderer.prefix_ids()


def test_calls_and_their_answers_carry_ids_of_nine_letters_and_digits_and_the_tools_name():
    body = "<|start|>{{ m.role }}:{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
    body += " {{ c.function.arguments | tojson }}#{{ c.id }}{% endfor %}"
    body += "{% if m.role == 'tool' %}{{ m.name }}={{ m.tool_call_id }}{% endif %}<|end|>"
    tokenizer = byte_level("chatml", chat_template=loop(body))
    turns = [*ASK, assistant("", SEARCH), Message(role="tool", content="Two."), user("Sure?")]
    text = tokenizer.decode(Renderer(tokenizer).render(turns).ids)
    called, answered = text.split("#")[1][:9], text.split("search_info=")[1][:9]
    assert called == answered
    assert called.isalnum()


def test_importing_the_renderer_loads_neither_torch_nor_transformers():
    code = "import emeval.chat, sys; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
