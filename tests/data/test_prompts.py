"""Prompt templates: wording letter for letter, and content that looks like a pattern."""

from typing import ClassVar

import pytest

from devft_jax.data.prompts import prompt_text, render, resolve_template
from devft_jax.data.records import Record, Turn
from devft_jax.errors import InputError


def record(instruction="Add.", input="", output="3"):
    return Record(instruction, input, output, None, "a.json:1")


def texts(record, template="alpaca"):
    segments = render(record, template)
    assert [segment.is_answer for segment in segments] == [False, True] * (len(segments) // 2)
    return tuple(segment.text for segment in segments)


def test_alpaca_is_the_stanford_wording():
    assert texts(record()) == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nAdd.\n\n### Response:",
        "3",
    )
    assert texts(record(input="1 2"), "alpaca") == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:",
        "3",
    )


def test_openfedllm_has_no_input_section_and_answers_behind_the_heading():
    opening = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    assert texts(record(), "openfedllm") == (f"{opening}\n\n### Instruction:\nAdd. \n\n### Response:", " 3")
    assert texts(record(input="1 2"), "openfedllm") == (f"{opening}\n\n### Instruction:\nAdd. 1 2 \n\n### Response:", " 3")
    assert texts(TALK, "openfedllm")[1:3] == (" Hello", "\n\n### Instruction:\n1 + 1? \n\n### Response:")
    assert prompt_text(record(), "openfedllm") == texts(record(), "openfedllm")[0]


def test_completion_is_the_prompt_as_it_is():
    assert texts(record(), "completion") == ("Add.", "3")
    assert texts(record(input="1 2"), "completion") == ("Add.\n1 2", "3")


@pytest.mark.parametrize("template", ["alpaca", "openfedllm", "alpaca_short", "completion"])
def test_braces_in_a_record_are_text(template):
    prompt, completion = texts(record("print({x})", "{input} {0}", "{}"), template)
    assert "print({x})" in prompt
    assert "{input} {0}" in prompt
    assert completion.strip() == "{}"


def test_an_unknown_template_is_refused():
    with pytest.raises(InputError, match="template 'vicuna' is unknown; choose from auto, alpaca, openfedllm, alpaca"):
        render(record(), "vicuna")


def conversation(*turns):
    return Record.of_turns([Turn(role, content) for role, content in turns], None, "a.jsonl:4")


TALK = conversation(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "1 + 1?"), ("assistant", "2"))


def test_a_conversation_repeats_the_headings_and_says_the_system_text_once():
    assert texts(TALK) == (
        "Be brief.\n\n### Instruction:\nHi\n\n### Response:",
        "Hello",
        "\n\n### Instruction:\n1 + 1?\n\n### Response:",
        "2",
    )
    assert texts(TALK, "completion") == ("Be brief.\nHi", "Hello", "\n1 + 1?", "2")
    one = conversation(("user", "Add."), ("assistant", "3"))
    for template in ("alpaca", "openfedllm", "alpaca_short", "completion"):
        assert texts(one, template) == texts(record(), template)


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ("ua u", ("0", "1")),
        ("uua", ("0\n1", "2")),
        ("uaa", ("0", "1\n2")),
        ("a", ("", "0")),
        ("aua", ("", "0", "\n1", "2")),
        ("usa", ("1\n0", "2")),
        ("uasua", ("0", "1", "\n2\n3", "4")),
        ("s a", ("0\n", "1")),
    ],
)
def test_turns_in_any_order_have_a_wording(roles, expected):
    names = {"u": "user", "a": "assistant", "s": "system"}
    turns = [(names[letter], str(number)) for number, letter in enumerate(roles.replace(" ", ""))]
    assert texts(conversation(*turns), "completion") == expected


def test_the_last_exchange_of_a_conversation_is_its_instruction():
    assert (TALK.instruction, TALK.input, TALK.output) == ("1 + 1?", "", "2")
    assert TALK.text == "Be brief.\nHi\nHello\n1 + 1?\n2"
    assert record(input="1 2").turns == (Turn("user", "Add.\n1 2"), Turn("assistant", "3"))
    assert conversation(("assistant", "3"), ("user", "?")).instruction == ""


class FakeTokenizer:
    """Has a chat template; `<end>` is its only special token."""

    name_or_path = "fake"
    all_special_tokens = ("<end>",)
    special_tokens_map: ClassVar[dict[str, str]] = {"eos_token": "<end>"}

    def __init__(self, chat_template):
        self.chat_template = chat_template

    def get_chat_template(self):
        return self.chat_template


PLAIN = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ eos_token }}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def test_a_chat_is_cut_where_the_assistant_begins_and_ends():
    segments = render(TALK, "chat", FakeTokenizer(PLAIN))
    assert [segment.text for segment in segments] == [
        "s:Be brief.<end>\nu:Hi<end>\na:",
        "Hello<end>",
        "\nu:1 + 1?<end>\na:",
        "2<end>",
    ]
    instruction = render(record(input="1 2"), "chat", FakeTokenizer(PLAIN))
    assert [segment.text for segment in instruction] == ["u:Add.\n1 2<end>\na:", "3<end>"]


def test_a_second_end_that_only_the_last_turn_has_is_left_out():
    twice = PLAIN + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    segments = render(TALK, "chat", FakeTokenizer(twice))
    assert [segment.text for segment in segments][1::2] == ["Hello<end>", "2<end>"]


FORGETFUL = PLAIN.replace("m.content", "m.content if loop.last or m.role != 'assistant' else '...'")


def test_a_template_that_rewrites_earlier_turns_gives_every_answer_a_text_of_its_own():
    segments = render(TALK, "chat", FakeTokenizer(FORGETFUL))
    assert [(segment.text, segment.is_answer, segment.begins) for segment in segments] == [
        ("s:Be brief.<end>\nu:Hi<end>\na:", False, False),
        ("Hello<end>", True, False),
        ("s:Be brief.<end>\nu:Hi<end>\na:...<end>\nu:1 + 1?<end>\na:", False, True),
        ("2<end>", True, False),
    ]
    assert len(render(record(), "chat", FakeTokenizer(FORGETFUL))) == 2


def test_an_answer_that_does_not_follow_what_asks_for_it_is_refused():
    thinking = PLAIN.replace("%}a:{%", "%}a:<think>{%")
    with pytest.raises(
        InputError, match=r"before turn 3 of a\.jsonl:4 differently when it asks .* another template such as"
    ):
        render(TALK, "chat", FakeTokenizer(thinking))


def test_a_conversation_that_the_chat_template_refuses_is_named():
    strict = FakeTokenizer("{{ raise_exception('Roles must alternate.\\nand a trace') }}")
    with pytest.raises(InputError, match=r"refuses the conversation a\.jsonl:4 \(Roles must alternate\); correct or"):
        render(TALK, "chat", strict)


def test_auto_is_the_chat_template_only_for_conversations_and_where_there_is_one(word_tokenizer):
    chat = FakeTokenizer(PLAIN)
    assert resolve_template("auto", conversational=True, tokenizer=chat) == "chat"
    assert resolve_template("auto", conversational=False, tokenizer=chat) == "alpaca"
    assert resolve_template("auto", conversational=True, tokenizer=word_tokenizer()) == "alpaca"
    assert resolve_template("completion", conversational=True, tokenizer=chat) == "completion"
    with pytest.raises(InputError, match=r"has none; add chat_template to its tokenizer_config\.json, or use another"):
        render(record(), "chat", word_tokenizer())
    with pytest.raises(InputError, match="template 'auto' depends on the data"):
        render(record(), "auto", chat)


def test_several_chat_templates_without_a_default_are_an_input_error(word_tokenizer):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = {"rag": "a", "tool_use": "b"}
    with pytest.raises(InputError, match="has several chat templates and none is called default; rename the one to use"):
        render(record(), "chat", tokenizer)
