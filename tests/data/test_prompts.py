"""Prompt templates: wording letter for letter, and content that looks like a pattern."""

import pytest

from devft_jax.data.prompts import render
from devft_jax.data.sources import Record
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


def test_completion_is_the_prompt_as_it_is():
    assert texts(record(), "completion") == ("Add.", "3")
    assert texts(record(input="1 2"), "completion") == ("Add.\n1 2", "3")


@pytest.mark.parametrize("template", ["alpaca", "alpaca_short", "completion"])
def test_braces_in_a_record_are_text(template):
    prompt, completion = texts(record("print({x})", "{input} {0}", "{}"), template)
    assert "print({x})" in prompt
    assert "{input} {0}" in prompt
    assert completion == "{}"


def test_an_unknown_template_is_refused():
    with pytest.raises(InputError, match="template 'vicuna' is unknown; choose from auto, alpaca, alpaca_short, comp"):
        render(record(), "vicuna")
