"""How prompts come in."""

import io
import json

import pytest

from devft_jax.errors import InputError
from devft_jax.inference import prompts
from devft_jax.inference.prompts import read_prompts, read_standard_input


def test_an_array_and_fields_of_other_names(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([{"ask": "a", "about": 3, "instruction": "no"}]))
    [record] = read_prompts(path, {"instruction": "ask", "input": "about"})
    assert (record.instruction, record.input) == ("a", "3")


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.jsonl", '{"instruction": "a"}\n{"instruction"', r"a.jsonl:2 is not valid JSON"),
        ("a.jsonl", '{"text": "a"}', r"a.jsonl:1 has no field instruction, prompt or question \(it has text\)"),
        ("a.jsonl", "3", "a.jsonl:1 is a int, not an object"),
        ("a.json", "{}", "does not hold an array"),
        ("a.json", "[]", "holds no prompt"),
        ("a.txt", "\n\n", "holds no prompt"),
        ("a.txt", "a\n\udcff", r"a\.txt:2 is not UTF-8 text \(byte 0xff\)"),
        (
            "a.jsonl",
            '{"instruction": "a"}\n{"instruction": "a", "instruction": "b"}',
            r"a\.jsonl:2 names 'instruction' twice",
        ),
        ("a.jsonl", '\n{"instruction": ' + "1" * 5000 + "}", r"a\.jsonl:2 holds an integer of 5,000 digits"),
        ("a.jsonl", '{"instruction": "\\ud800"}', r"a\.jsonl:1 holds .*an unpaired surrogate"),
        ("a.json", '[\n{"instruction": "\\udfff"}]', r"a\.json:2 holds .*an unpaired surrogate"),
        ("a.json", "[" * 100_000, "is nested too deeply"),
    ],
)
def test_files_that_hold_no_prompts(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(InputError, match=sentence):
        read_prompts(tmp_path / name, {})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a\n\xff\n", r"standard input:2 is not UTF-8 text \(byte 0xff\)"),
        (b"\n \n", "standard input holds no prompt"),
        (b"", "standard input holds no prompt"),
    ],
)
def test_a_pipe_that_is_no_text(content, sentence):
    with pytest.raises(InputError, match=sentence):
        read_standard_input(io.TextIOWrapper(io.BytesIO(content), "ascii"))


def test_a_pipe_is_utf8_whatever_the_terminal_has(monkeypatch):
    piped = io.TextIOWrapper(io.BytesIO("\ufeffä\r\n\n日本\n".encode()), "ascii")
    assert [(record.instruction, record.origin) for record in read_standard_input(piped)] == [
        ("ä", "standard input:1"),
        ("日本", "standard input:3"),
    ]
    monkeypatch.setattr(prompts, "MOST_BYTES", 10)
    with pytest.raises(InputError, match="standard input holds more than 10 bytes"):
        read_standard_input(io.TextIOWrapper(io.BytesIO(b"a" * 11), "ascii"))
