"""Rows of every file form, and a sentence for every way to fail."""

import gzip
import json

import pytest

from devft_jax.data.records import Record
from devft_jax.data.sources import load_sources
from devft_jax.errors import InputError
from tests.data.written import ALPACA, GOOD, everything, read, write, write_parquet, write_rows


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.jsonl.gz"])
def test_every_file_form_gives_the_same_records(tmp_path, name):
    rows = [ALPACA, ALPACA | {"output": "three"}]
    path = write_rows(tmp_path / name, rows)
    [source] = load_sources(path)
    assert source.name == "a"
    assert list(source) == [
        Record("Add.", "1 2", "3", None, f"{path}:1"),
        Record("Add.", "1 2", "three", None, f"{path}:2"),
    ]


def test_content_and_not_suffix_decides_how_a_file_is_read(tmp_path):
    lines = tmp_path / "lines.json"
    lines.write_bytes(gzip.compress("\n".join([json.dumps(ALPACA)] * 2).encode()))
    assert len(list(load_sources(str(lines))[0])) == 2


def test_blank_lines_count_but_hold_no_record_and_only_newlines_end_a_line(tmp_path):
    row = ALPACA | {"output": "a\u2028b"}
    text = "\ufeff\n" + json.dumps(row, ensure_ascii=False) + "\r\n\n" + json.dumps(ALPACA) + "\n"
    [source] = load_sources(write(tmp_path / "a.jsonl", text))
    assert [record.origin.rpartition(":")[2] for record in source] == ["2", "4"]
    assert next(iter(source)).output == "a\u2028b"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.jsonl",
            '{"instruction": "a", "output": "b"}\n{"instr',
            r"a\.jsonl:2 is not valid JSON",
        ),
        ("a.json", '[{"instruction": "a",\n "output": }]', r"a\.json:2 is not valid JSON"),
        (
            "a.jsonl",
            '{"instruction": "a", "output": "b"}\n[1]',
            r"a\.jsonl:2 is a list, not an obj",
        ),
        ("a.json", "[3]", r"a\.json:1 is a int, not an object"),
        ("a.json", "", r"a\.json holds no record"),
        ("a.json", "[]", r"a\.json holds no record"),
        (
            "a.jsonl",
            '{"instruction": "a", "output": "b"}\n\n{"instruction": "a", "text": "b"}',
            r"a\.jsonl:3 has no field 'output' for its output \(it has instruction, text\)",
        ),
        ("a.json", '[{"query": "a"}]', r"a\.json:1 has no field 'instruction' .*option fields"),
        ("a.json", '[{"prompt": "a", "completion": ["b"]}]', r"a\.json:1 has a list in the field"),
    ],
)
def test_broken_content_is_named_by_file_and_place(tmp_path, name, text, message):
    with pytest.raises(InputError, match=message):
        everything(load_sources(write(tmp_path / name, text)))


@pytest.mark.parametrize(
    "content", [gzip.compress(b'[{"a": 1}]' * 50, mtime=0)[:-9], b"\x1f\x8bnot gzip at all"], ids=["cut", "no gzip"]
)
def test_unreadable_bytes_are_an_input_error(tmp_path, content):
    path = tmp_path / "a.json.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json\.gz cannot be read as text, plain or gzipped"):
        load_sources(str(path))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_another_encoding_is_named(tmp_path, encoding):
    path = tmp_path / "a.csv"
    path.write_bytes("prompt,completion\né,b\n".encode(encoding))
    with pytest.raises(InputError, match=r"a\.csv:[12] is not UTF-8 text, .*; save it as UTF-8"):
        load_sources(str(path))


def test_a_file_of_another_format_is_told_the_formats(tmp_path):
    with pytest.raises(InputError, match=r"a\.txt:1 is not valid JSON .*the names of others must end in \.csv, \.tsv"):
        load_sources(write(tmp_path / "a.txt", "prompt;completion\n"))


def test_a_suffix_may_be_in_capitals(tmp_path):
    write(tmp_path / "Part.CSV", "prompt,completion\na,b\n")
    (tmp_path / "Other.JSONL.GZ").write_bytes(gzip.compress(b'{"prompt": "c", "completion": "d"}\n'))
    for spec in (str(tmp_path), str(tmp_path / "*")):
        sources = load_sources(spec)
        assert [(source.name, [record.output for record in source]) for source in sources] == [
            ("Other", ["d"]),
            ("Part", ["b"]),
        ]


@pytest.mark.parametrize(("name", "between"), [("a.csv", ","), ("a.tsv", "\t"), ("a.csv.gz", ","), ("a.tsv.gz", "\t")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separated_values_with_quotes_line_breaks_and_a_byte_order_mark(tmp_path, name, between, end):
    lines = [
        ("instruction", "output", "category"),
        ('"Say ""hi"", 你好\nthen\tstop"', "ok", "x"),
        ("", "", ""),
        ('"a, b"', '" c "', "y"),
    ]
    path = write(tmp_path / name, "\ufeff" + end.join(between.join(line) for line in lines) + end + end)
    first, empty, last = read(path)
    assert first == Record('Say "hi", 你好\nthen\tstop', "", "ok", "x", f"{path}:2")
    assert (empty.instruction, empty.output, empty.category) == ("", "", None)
    assert (last.instruction, last.output, last.origin) == ("a, b", " c ", f"{path}:5")


def test_a_value_may_be_long_and_the_row_numbers_of_pandas_are_left_out(tmp_path):
    path = write(tmp_path / "a.csv", f",prompt,completion\n0,{'a' * 200_000},b\n")
    [record] = read(path)
    assert len(record.instruction) == 200_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a\.csv holds no record"),
        ("instruction,output\n", r"a\.csv holds no record"),
        ('instruction,output\n"a\nb",c\na,b,c\n', r"a\.csv:4 has 3 values and the header names 2 columns; correct"),
        ("instruction,output\na\n", r"a\.csv:2 has 1 values and the header names 2"),
        ('instruction,output\na,b\n"c"d,e\n', r"a\.csv:3 is not valid CSV"),
        ('instruction,output\na,b\n"c,d\n', r"a\.csv:3 is not valid CSV \(unexpected end of data\)"),
        ("output,output\na,b\n", r"a\.csv:1 names the column 'output' twice"),
        ("a,b\nc,d\n", r"a\.csv:2 has no field 'instruction' .*it has a, b"),
        ('messages\n"[]"\n', r"a\.csv:2 has a str in the field 'messages', where the turns"),
    ],
)
def test_broken_separated_values_are_named_by_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read(write(tmp_path / "a.csv", text))


def test_parquet_with_two_columns_of_one_name_is_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=["prompt", "completion", "completion"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet names the column 'completion' twice"):
        load_sources(str(tmp_path / "a.parquet"))


def test_parquet_is_read_over_row_groups_whatever_its_suffix(tmp_path):
    rows = [{"question": f"q{n}", "answer": f"a{n}\u2028é", "task": "t"} for n in range(25)]
    path = write_parquet(tmp_path / "a.parquet", rows, row_group_size=10)
    [source] = load_sources(path)
    assert len(source) == 25
    records = list(source)
    assert records[17] == Record("q17", "", "a17\u2028é", "t", f"{path}:18")
    assert list(source) == records
    renamed = tmp_path / "data.bin"
    renamed.write_bytes((tmp_path / "a.parquet").read_bytes())
    assert [record.output for record in read(renamed)] == [record.output for record in records]


def test_broken_parquet_is_named(tmp_path):
    for rows, message in (
        ([{"instruction": "a", "text": "b"}], r"a\.parquet:1 has no field 'output'"),
        ([{"instruction": "a", "output": "b"}, {"instruction": "c", "output": None}], r":2 holds nothing in the field 'out"),
        ([{"instruction": "a", "output": b"b"}], r":1 has a bytes in the field 'output', where text"),
    ):
        with pytest.raises(InputError, match=message):
            read(write_parquet(tmp_path / "a.parquet", rows))
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:-20])
    with pytest.raises(InputError, match=r"a\.parquet cannot be read as Parquet \(.*; replace it by a whole file"):
        read(tmp_path / "a.parquet")
    write_parquet(tmp_path / "b.parquet", [])
    with pytest.raises(InputError, match=r"b\.parquet holds no record"):
        read(tmp_path / "b.parquet")


TWICE = '{"instruction": "a", "instruction": "b", "output": "c"}'


LONG = '{"instruction": 1' + "0" * 5000 + ', "output": "c"}'


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.jsonl.gz"])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        (TWICE, "names 'instruction' twice in one object"),
        (LONG, "holds an integer of 5,001 digits"),
        ('{"instruction": "a\\udc00", "output": "c"}', "an unpaired surrogate"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"instruction": "a"', "is not valid JSON"),
        ('{"instruction": "a\udce4", "output": "c"}', "is not UTF-8 text.*byte 0xe4"),
    ],
)
def test_odd_json_is_one_sentence_with_file_and_line(tmp_path, name, row, message):
    rows = [GOOD, row] if "jsonl" in name else ["[", GOOD + ",", row, "]"]
    path = tmp_path / name
    content = ("\n".join(rows) + "\n").encode("utf-8", "surrogateescape")
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    # An array that is nested too deeply is named as a whole; an object that is not closed is noticed at what follows.
    line = 2 if "jsonl" in name else {"nested too deeply": 1, "is not valid JSON": 4}.get(message, 3)
    with pytest.raises(InputError, match=rf"{name}:{line} .*{message}"):
        read(path)


def test_text_that_is_not_utf8_is_named_in_tables_too(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"prompt,completion\na,b\nc,\xe4\n")
    with pytest.raises(InputError, match=r"a\.csv:3 is not UTF-8 text.*byte 0xe4"):
        read(tmp_path / "a.csv")
    import pyarrow
    import pyarrow.parquet

    bad = pyarrow.array([b"b", b"\xe4"]).view(pyarrow.string())
    table = pyarrow.Table.from_arrays([pyarrow.array(["a", "a"]), bad], names=["prompt", "completion"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet:2 is not UTF-8 text \(byte 0xe4"):
        read(tmp_path / "a.parquet")


def test_old_line_ends_still_end_the_rows_of_a_table(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"prompt,completion\ra,b\rc,d\r")
    assert [(r.output, r.origin[-2:]) for r in read(tmp_path / "a.csv")] == [("b", ":2"), ("d", ":3")]
