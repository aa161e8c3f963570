import json
import math
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.errors import InputError
from devft_jax.files import json_objects, parse_json, parse_yaml, read_json, read_text, read_yaml

TEXT = st.text(st.characters(exclude_categories=("Cs",)))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_json_is_read_as_the_library_reads_it(value):
    assert parse_json(json.dumps(value), "a.json") == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode(), "a.json") == value


@given(st.lists(st.dictionaries(TEXT, VALUES, max_size=2), max_size=3))
def test_json_lines_are_read_with_their_places(rows):
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    assert list(json_objects("\n\n".join(lines), "a")) == [(f"a:{2 * index + 1}", row) for index, row in enumerate(rows)]
    for wrong, sentence in (("[1]", "a:{} is no JSON object; correct the line."), ("{", "a:{} is not valid JSON")):
        with pytest.raises(InputError, match=re.escape(sentence.format(len(rows) + 1))):
            list(json_objects("\n".join([*lines, wrong]), "a"))


@given(TEXT.filter(lambda text: text.strip() == text), st.integers(-(10**9), 10**9), st.floats(-1e9, 1e9), st.booleans())
def test_yaml_reads_what_json_writes(text, integer, number, flag):
    value = {"text": text, "integer": integer, "number": number, "flag": flag, "list": [None, integer]}
    assert parse_yaml(json.dumps(value), "a.yaml") == value


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('{\n "a": 1,\n "a": 2}', 3, "names 'a' twice"),
        ('[{"a": 1},\n {"b": {"c": 1, "d": "c: {", "c": 2}}]', 2, "names 'c' twice"),
        ('{"\\u0061": 1, "a": 2}', 1, "names 'a' twice"),
        ("[1,\n" + "9" * 4301 + "]", 2, "4,301 digits"),
        ('[1,\n"\\ud800"]', 2, r"holds \ud800, an unpaired surrogate"),
        ('{"\\udc00": 1}', 1, r"holds \udc00, an unpaired surrogate"),
        ("[" * 200_000, 1, "nested too deeply"),
        ('{"a": 1,\n"b": \n', 2, "is not valid JSON"),
        ('{"a": "x', 1, "is not valid JSON"),
        ("", 1, "is not valid JSON"),
    ],
)
def test_odd_json_is_one_sentence_with_its_line(text, line, says):
    with pytest.raises(InputError) as caught:
        parse_json(text, "a.json")
    assert str(caught.value).startswith(f"a.json:{line} ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_surrogate_pairs_and_escaped_backslashes_are_text():
    assert parse_json('["\\ud83d\\ude00", "\\\\ud800"]', "a.json") == ["\U0001f600", "\\ud800"]


def test_a_line_of_a_file_keeps_its_number():
    with pytest.raises(InputError, match=r"^rows.jsonl:7 is not valid JSON \(.*, column 2\)"):
        parse_json("{x", "rows.jsonl", 7)
    with pytest.raises(InputError, match=r"^the prompt is not valid JSON"):
        parse_json("{x", "the prompt", None)


def test_bytes_that_are_no_text_name_their_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a":\n "\xff"}')
    with pytest.raises(InputError, match=r"a.json:2 is not UTF-8 text \(byte 0xff\)"):
        read_json(path)
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        (".inf", math.inf),
        ("010", 10),
        ("0x10", 16),
        ("0o10", 8),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("12:30", "12:30"),
        ("2026-02-30", "2026-02-30"),
        ("1_000", "1_000"),
        ("null", None),
        ("", None),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("base: &b {x: 1, y: 2}\nc: {<<: *b, y: 3}", {"base": {"x": 1, "y": 2}, "c": {"x": 1, "y": 3}}),
    ],
)
def test_yaml_is_read_by_the_core_schema(text, value):
    assert parse_yaml(text, "a.yaml") == value


def repeated(first, line):
    """Nine levels, each of which repeats the one before ten times."""
    return f"a: &a {first}\n" + "".join(
        f"{name}: &{name} {line.format(', '.join([f'*{before}'] * 10))}\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )


BOMB = repeated("[x, x, x, x, x, x, x, x, x, x]", "[{}]")
MERGES = repeated("{x: 1}", "{{<<: [{}]}}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "a.yaml:3 names 'a' twice"),
        ("a:\n  - {x: 1, x: 2}", "a.yaml:2 names 'x' twice"),
        (BOMB, "expands to more than 100,000 values"),
        (MERGES, "expands to more than 100,000 values"),
        ("&a [*a]", "contains itself through an alias"),
        ("a: 1\nb: [1", "is not valid YAML or JSON"),
        ("a: " + "9" * 4301, "a.yaml:1 holds an integer of 4,301 digits"),
        ('a: "\\ud800"', "a.yaml:1 holds an unpaired surrogate"),
        ("[" * 20_000, "nested too deeply"),
        ("a: !!python/object/apply:os.system [true]", "is not valid YAML or JSON"),
        ("a: 1\n--- \nb: 2", "is not valid YAML or JSON"),
        ("a: \0", "is not valid YAML or JSON"),
        ("? [1, 2]\n: 3\n? {a: 1}\n: 4", "is not valid YAML or JSON"),
    ],
)
def test_odd_yaml_is_one_sentence(text, says):
    with pytest.raises(InputError) as caught:
        parse_yaml(text, "a.yaml")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path):
    pipe, large = tmp_path / "pipe", tmp_path / "large"
    os.mkfifo(pipe)
    large.write_text("12345")
    with pytest.raises(InputError, match="not a regular file"):
        read_yaml(pipe, "the configuration")
    with pytest.raises(InputError, match=r"is a folder|not a regular file"):
        read_text(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        read_text(tmp_path / "absent")
    with pytest.raises(InputError, match="has 5 bytes, more than the limit of 4"):
        read_text(large, most=4)
    assert read_text(large, most=5) == "12345"
