"""Every field layout and form of conversation becomes records."""

import pytest

from devft_jax.data.records import Turn
from devft_jax.data.sources import load_sources
from devft_jax.errors import InputError
from tests.data.written import ALPACA, only_record, read, write, write_parquet, write_rows


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (ALPACA, ("Add.", "1 2", "3", None)),
        ({"instruction": "a", "output": "c"}, ("a", "", "c", None)),
        (
            {"instruction": "a", "context": "b", "response": "c", "category": "d"},
            ("a", "b", "c", "d"),
        ),
        ({"instruction": "a", "input": "b", "response": "c"}, ("a", "b", "c", None)),
        ({"prompt": "a", "completion": "c", "template": "t"}, ("a", "", "c", "t")),
        ({"question": "a", "answer": "c", "task": "sums"}, ("a", "", "c", "sums")),
        ({"question": 1, "answer": 2.5, "category": 7}, ("1", "", "2.5", "7")),
        ({"instruction": "a", "input": None, "output": ""}, ("a", "", "", None)),
    ],
)
def test_layouts_in_use_are_recognised(tmp_path, row, expected):
    record = only_record(tmp_path / "a.jsonl", row)
    found = (record.instruction, record.input, record.output, record.category)
    assert found == expected


def test_an_input_field_that_only_later_records_have_is_not_overlooked(tmp_path):
    rows = [
        {"instruction": "a", "response": "b"},
        {"instruction": "a", "context": "c", "response": "b"},
    ]
    [source] = load_sources(write_rows(tmp_path / "a.jsonl", rows))
    assert [record.input for record in source] == ["", "c"]


def test_fields_override_what_is_found(tmp_path):
    row = {"instruction": "a", "input": "b", "output": "c", "short": "d", "kind": "e"}
    record = only_record(tmp_path / "a.json", row, fields={"output": "short"}, category_field="kind")
    assert (record.instruction, record.input, record.output) == ("a", "b", "d")
    assert record.category == "e"


def test_what_pandas_writes_for_a_missing_value_is_none(tmp_path):
    [record] = read(write(tmp_path / "a.jsonl", '{"instruction": "a", "input": NaN, "output": "b", "category": NaN}'))
    assert (record.input, record.category) == ("", None)
    with pytest.raises(InputError, match=r"b\.jsonl:1 holds nothing in the field 'output'"):
        read(write(tmp_path / "b.jsonl", '{"instruction": "a", "output": NaN}'))


def test_turns_in_both_forms_share_a_parquet_column(tmp_path):
    turns = [{"role": None, "content": None, "from": "human", "value": "hi"}]
    turns += [{"role": "assistant", "content": "hello", "from": None, "value": None}]
    [record] = read(write_parquet(tmp_path / "a.parquet", [{"messages": turns}]))
    assert record.turns == (Turn("user", "hi"), Turn("assistant", "hello"))


def test_parquet_holds_conversations_too(tmp_path):
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}]}
    [record] = read(write_parquet(tmp_path / "a.parquet", [row]))
    assert record.turns == (Turn("user", "hi"), Turn("assistant", "ok"))


ASKED = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": ASKED},
        {"conversations": ASKED, "id": 3},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ok"}]},
        {"conversation": [{"from": "user", "value": "hi"}, {"from": "assistant", "value": "ok"}]},
        {"messages": ASKED, "prompt": "hi", "completion": "other"},
    ],
)
def test_forms_of_conversations(tmp_path, row):
    [source] = load_sources(write_rows(tmp_path / "a.jsonl", [row]))
    [record] = source
    assert source.conversational
    assert record.turns == record.conversation == (Turn("user", "hi"), Turn("assistant", "ok"))
    assert (record.instruction, record.input, record.output) == ("hi", "", "ok")


def test_a_system_text_beside_the_turns_comes_first(tmp_path):
    row = {"system": "Be brief.", "messages": ASKED, "category": "x"}
    record = only_record(tmp_path / "a.jsonl", row)
    assert record.turns[0] == Turn("system", "Be brief.")
    assert record.category == "x"
    row["messages"] = [{"role": "system", "content": "Be long."}, *ASKED]
    assert only_record(tmp_path / "b.jsonl", row).turns[0] == Turn("system", "Be long.")


def test_unusual_orders_are_kept(tmp_path):
    said = [("gpt", "welcome"), ("human", "a"), ("human", "b"), ("gpt", "c"), ("gpt", "d"), ("human", "e")]
    row = {"conversations": [{"from": speaker, "value": text} for speaker, text in said]}
    record = only_record(tmp_path / "a.jsonl", row)
    assert [turn.content for turn in record.turns] == [text for _, text in said]
    assert (record.instruction, record.output) == ("b", "d")


def test_fields_say_which_form_is_meant(tmp_path):
    row = {"messages": ASKED, "talk": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}], "q": "1", "a": "2"}
    assert only_record(tmp_path / "a.jsonl", row, fields={"messages": "talk"}).output == "y"
    assert only_record(tmp_path / "b.jsonl", row, fields={"instruction": "q", "output": "a"}).output == "2"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], r"a\.jsonl:2 has an empty list in the field 'messages', where the turns"),
        (None, r"a\.jsonl:2 has nothing in the field 'messages'"),
        ("hi", r"a\.jsonl:2 has a str in the field 'messages'"),
        (ASKED[:1], r"a\.jsonl:2 has no assistant turn, so nothing can be learned from it"),
        ([*ASKED, {"role": "tool", "content": "3"}], r"a\.jsonl:2 has a turn 3 by 'tool', .* the speakers are system, user"),
        ([{"role": None, "content": "3"}], r"turn 1 by None, which is not supported"),
        ([ASKED[0], {"role": "assistant", "content": None}], r"has nothing as the content of turn 2, where text"),
        ([ASKED[0], {"role": "assistant"}], r"has nothing as the content of turn 2"),
        ([ASKED[0], {"role": "assistant", "content": [{"type": "text"}]}], r"has a list as the content of turn 2"),
        (["hi"], r"has a turn 1 without a speaker"),
        ([{"content": "hi"}], r"has a turn 1 without a speaker; every turn must be an object with role and content"),
        (
            [ASKED[0], {"role": "assistant", "content": "\ud800"}],
            r"a\.jsonl:2 holds \\ud800, an unpaired surrogate; correct",
        ),
    ],
)
def test_broken_conversations_are_named_by_line_and_turn(tmp_path, messages, message):
    with pytest.raises(InputError, match=message):
        read(write_rows(tmp_path / "a.jsonl", [{"messages": ASKED}, {"messages": messages}]))
