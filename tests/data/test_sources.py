"""Reading records: every file form, every field layout, and a sentence for every way to fail."""

import gzip
import json
import sys
import types

import pytest

from devft_jax.data.sources import BUILT_IN, Record, Records, Turn, held_out_files, is_held_out_name, load_sources
from devft_jax.errors import InputError

ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3"}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return str(path)


def write_rows(path, rows):
    as_lines = "jsonl" in path.name
    return write(path, "\n".join(map(json.dumps, rows)) if as_lines else json.dumps(rows))


def everything(sources):
    return [(source.name, list(source)) for source in sources]


def only_record(path, row, **options):
    [source] = load_sources(write_rows(path, [row]), **options)
    [record] = source
    return record


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


def test_a_folder_and_a_glob_come_in_natural_order_and_skip_other_files(tmp_path):
    for number in (10, 2, 1):
        write_rows(tmp_path / f"client_{number}.json", [ALPACA])
    write(tmp_path / "README.md", "not data")
    expected = ["client_1", "client_2", "client_10"]
    assert [source.name for source in load_sources(str(tmp_path))] == expected
    assert [source.name for source in load_sources(str(tmp_path / "*"))] == expected


def test_files_of_equal_name_are_named_by_their_path_under_the_glob(tmp_path):
    for user in ("a", "b"):
        write_rows(tmp_path / "users" / user / "train.json", [ALPACA])
    sources = load_sources(str(tmp_path / "users" / "*" / "train.json"))
    assert [source.name for source in sources] == ["a/train", "b/train"]


def test_several_specs_keep_their_order(tmp_path):
    paths = [write_rows(tmp_path / f"{name}.json", [ALPACA]) for name in "ba"]
    assert [source.name for source in load_sources(paths)] == ["b", "a"]


def test_a_limit_takes_every_source_in_proportion_and_always_the_same_records(tmp_path):
    for name, count in (("a", 60), ("b", 30), ("c", 10)):
        rows = [ALPACA | {"output": str(number)} for number in range(count)]
        write_rows(tmp_path / f"{name}.json", rows)
    limited = load_sources(str(tmp_path), limit=20)
    assert [len(source) for source in limited] == [12, 6, 2]
    assert everything(limited) == everything(load_sources(str(tmp_path), limit=20))
    outputs = [int(record.output) for record in limited[0]]
    assert outputs == sorted(set(outputs))
    assert outputs != list(range(12))
    assert everything(load_sources(str(tmp_path), limit=100)) == everything(load_sources(str(tmp_path)))


def test_built_in_data_has_splits_and_counts(monkeypatch):
    asked = []

    def generate(*, split, count, seed):
        asked.append((split, count, seed))
        return [Record("a", "", "b", "c", f"microtasks:{split}:{n}") for n in range(count)]

    module = types.SimpleNamespace(generate=generate)
    monkeypatch.setitem(sys.modules, "devft_jax.data.microtasks", module)
    defaults = BUILT_IN["microtasks"].counts
    [train], [test], [few] = map(load_sources, ("microtasks", "microtasks:test", "microtasks::7"))
    assert asked == [
        ("train", defaults["train"], 0),
        ("test", defaults["test"], 0),
        ("train", 7, 0),
    ]
    assert (train.name, test.name) == ("microtasks:train", "microtasks:test")
    assert len(list(few)) == len(few) == 7


def test_the_built_in_defaults_can_be_generated():
    pytest.importorskip("devft_jax.data.microtasks")
    for split, count in BUILT_IN["microtasks"].counts.items():
        [source] = load_sources(f"microtasks:{split}")
        assert len(source) == count
        assert all(isinstance(record, Record) for record in source)


def fake_hub(monkeypatch, load_dataset):
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))


@pytest.mark.parametrize(
    ("spec", "arguments", "split"),
    [
        ("owner/name", ("owner/name",), "train"),
        ("owner/name:test", ("owner/name",), "test"),
        ("owner/name/main:test", ("owner/name", "main"), "test"),
    ],
)
def test_a_hugging_face_name_is_loaded(monkeypatch, spec, arguments, split):
    def load_dataset(*found, split):
        asked.append((found, split))
        return [{"question": "a", "answer": "b"}]

    asked = []
    fake_hub(monkeypatch, load_dataset)
    [source] = load_sources(spec)
    assert asked == [(arguments, split)]
    assert list(source) == [Record("a", "", "b", None, f"{spec}:1")]


def test_an_unreachable_or_empty_hub_data_set_is_an_input_error(monkeypatch):
    def load_dataset(*_, split):
        raise ConnectionError("no route\nand a long trace")

    fake_hub(monkeypatch, load_dataset)
    with pytest.raises(InputError, match=r"'owner/name' is no local file .*\(no route\); check"):
        load_sources("owner/name")
    fake_hub(monkeypatch, lambda *_, split: [])
    with pytest.raises(InputError, match=r"'owner/name' holds no record; choose another split"):
        load_sources("owner/name")


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


@pytest.mark.parametrize("content", [gzip.compress(b'[{"a": 1}]' * 50)[:-9], b"\x1f\x8bnot gzip at all"])
def test_unreadable_bytes_are_an_input_error(tmp_path, content):
    path = tmp_path / "a.json.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json\.gz cannot be read as text, plain or gzipped"):
        load_sources(str(path))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_another_encoding_is_named(tmp_path, encoding):
    path = tmp_path / "a.csv"
    path.write_bytes("prompt,completion\né,b\n".encode(encoding))
    with pytest.raises(InputError, match=r"a\.csv is not UTF-8 text, .*; save it as UTF-8"):
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


def test_what_pandas_writes_for_a_missing_value_is_none(tmp_path):
    [record] = read(write(tmp_path / "a.jsonl", '{"instruction": "a", "input": NaN, "output": "b", "category": NaN}'))
    assert (record.input, record.category) == ("", None)
    with pytest.raises(InputError, match=r"b\.jsonl:1 holds nothing in the field 'output'"):
        read(write(tmp_path / "b.jsonl", '{"instruction": "a", "output": NaN}'))


def test_a_glob_takes_a_file_once_where_links_go_in_a_circle(tmp_path):
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "a.jsonl", '{"prompt": "a", "completion": "b"}')
    (tmp_path / "folder" / "again").symlink_to(tmp_path)
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "b.jsonl")
    assert [source.name for source in load_sources(str(tmp_path / "**/*.jsonl"))] == ["folder/a"]


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("./absent", {}, r"'\./absent' does not exist"),
        ("absent/", {}, r"'absent/' does not exist"),
        ("absent.jsonl", {}, r"'absent\.jsonl' does not exist"),
        ("absent_*.json", {}, r"'absent_\*\.json' matches no file .*quote a glob"),
        ((), {}, r"data is empty"),
        ("microtasks:other", {}, r"'microtasks:other' is not understood; write microtasks:SPLIT"),
        ("microtasks:test:many", {}, r"'microtasks:test:many' is not understood"),
        ("a.json", {"fields": {"answer": "b"}}, r"fields names an unknown role 'answer'"),
        ("a.json", {"limit": 0}, r"a limit of 0 records"),
    ],
)
def test_unusable_requests(spec, options, message):
    with pytest.raises(InputError, match=message):
        load_sources(spec, **options)


def test_a_mapped_input_that_never_occurs_and_doubled_names_are_refused(tmp_path):
    path = write_rows(tmp_path / "a.json", [ALPACA])
    with pytest.raises(InputError, match=r"maps input to 'contxt', which no record of .* has"):
        load_sources(path, fields={"input": "contxt"})
    with pytest.raises(InputError, match=r"would both be called 'a'; name every file once"):
        load_sources([path, path])


def write_parquet(path, rows, **options):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return str(path)


def read(path, **options):
    return [record for source in load_sources(str(path), **options) for record in source]


# ---- CSV and TSV -----------------------------------------------------------------------------------------------------


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


# ---- Parquet ---------------------------------------------------------------------------------------------------------


def test_parquet_with_two_columns_of_one_name_is_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=["prompt", "completion", "completion"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet names the column 'completion' twice"):
        load_sources(str(tmp_path / "a.parquet"))


def test_turns_in_both_forms_share_a_parquet_column(tmp_path):
    turns = [{"role": None, "content": None, "from": "human", "value": "hi"}]
    turns += [{"role": "assistant", "content": "hello", "from": None, "value": None}]
    [record] = read(write_parquet(tmp_path / "a.parquet", [{"messages": turns}]))
    assert record.turns == (Turn("user", "hi"), Turn("assistant", "hello"))


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


def test_parquet_holds_conversations_too(tmp_path):
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}]}
    [record] = read(write_parquet(tmp_path / "a.parquet", [row]))
    assert record.turns == (Turn("user", "hi"), Turn("assistant", "ok"))


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


# ---- conversations ---------------------------------------------------------------------------------------------------

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
        (ASKED[:1], r"a\.jsonl:2 holds no assistant turn, so nothing can be learned from it"),
        ([*ASKED, {"role": "tool", "content": "3"}], r"a\.jsonl:2 has a turn 3 by 'tool', .* the speakers are system, user"),
        ([{"role": None, "content": "3"}], r"turn 1 by None, which is not supported"),
        ([ASKED[0], {"role": "assistant", "content": None}], r"has nothing as the content of turn 2, where text"),
        ([ASKED[0], {"role": "assistant"}], r"has nothing as the content of turn 2"),
        ([ASKED[0], {"role": "assistant", "content": [{"type": "text"}]}], r"has a list as the content of turn 2"),
        (["hi"], r"has a turn 1 without a speaker"),
        ([{"content": "hi"}], r"has a turn 1 without a speaker; every turn must be an object with role and content"),
        ([ASKED[0], {"role": "assistant", "content": "\ud800"}], r"half a character \(a lone surrogate\) in turn 2"),
    ],
)
def test_broken_conversations_are_named_by_line_and_turn(tmp_path, messages, message):
    with pytest.raises(InputError, match=message):
        read(write_rows(tmp_path / "a.jsonl", [{"messages": ASKED}, {"messages": messages}]))


# ---- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test", True),
        ("global_test", True),
        ("alpaca_gpt4_eval", True),
        ("Valid", True),
        ("validation-00000-of-00001", True),
        ("dev2", True),
        ("held_out", True),
        ("my.heldout.data", True),
        ("held-out", True),
        ("train", False),
        ("latest", False),
        ("contest", False),
        ("evaluations", False),
        ("device_3", False),
        ("train_dev", False),
        ("training-test", False),
    ],
)
def test_names_of_held_out_files(name, expected):
    assert is_held_out_name(name) == expected


def test_a_folder_sets_its_test_files_aside_and_nothing_else_does(tmp_path):
    for name in ("train.csv", "more.jsonl", "test.json", "dataset_info.json", ".hidden.json", "README.md"):
        text = "instruction,output\na,b\n" if name.endswith("csv") else json.dumps(ALPACA)
        write(tmp_path / name, text)
    folder = str(tmp_path)
    assert [source.name for source in load_sources(folder)] == ["more", "train"]
    assert [source.name for source in load_sources(folder, held_out=True)] == ["test"]
    assert held_out_files(folder) == held_out_files((folder,)) == (tmp_path / "test.json",)
    for literal in (f"{folder}/*t*.json", f"{folder}/test.json", (folder, "microtasks"), "microtasks"):
        assert held_out_files(literal) == ()
    assert "test" in [source.name for source in load_sources((folder, "microtasks::5"))]
    write_rows(tmp_path / "only" / "eval_1.json", [ALPACA])
    assert held_out_files(f"{folder}/only") == ()
    assert [source.name for source in load_sources(f"{folder}/only")] == ["eval_1"]


def test_the_shards_of_one_split_are_one_source(tmp_path):
    for number in range(3):
        write_parquet(tmp_path / f"train-{number:05}-of-00003.parquet", [ALPACA | {"output": str(number)}] * 2)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", [ALPACA])
    [source] = load_sources(str(tmp_path))
    assert (source.name, len(source)) == ("train", 6)
    assert [record.output for record in source] == list("001122")
    assert [source.name for source in load_sources(str(tmp_path), held_out=True)] == ["test"]


def test_a_source_is_read_anew_each_time_and_picked_from_in_one_pass(tmp_path):
    for name in "ab":
        write_rows(tmp_path / f"{name}.jsonl", [ALPACA | {"output": f"{name}{n}"} for n in range(4)])
    records = Records(load_sources(str(tmp_path)))
    assert len(records) == 8
    assert [record.output for record in records] == [record.output for record in records]
    assert [record.output for record in records.at([1, 4, 7])] == ["a1", "b0", "b3"]
    assert list(records.at([])) == []


@pytest.mark.parametrize(
    ("folder", "training", "held_out"),
    [
        ("alpaca-52k", {"alpaca_52k": 51924}, {}),
        (
            "dolly-15k-fed10",
            {f"local_training_{n}": size for n, size in enumerate([1493] * 3 + [1492] + [1493] * 4 + [1494] * 2)},
            {"global_test": 80},
        ),
        ("alpaca-gpt4-2k", {"alpaca_en_demo": 999}, {"alpaca_gpt4_eval": 1000}),
        ("gsm8k", {"train": 7473}, {"test": 1319}),
        ("gpteacher", {"codegen-instruct": 4535, "roleplay-instruct": 1923}, {}),
    ],
)
def test_real_folders_hold_what_their_cards_say(shared, folder, training, held_out):
    path = str(shared / "data" / folder)
    assert {source.name: len(source) for source in load_sources(path)} == training
    aside = load_sources(path, held_out=True) if held_out_files(path) else []
    assert {source.name: len(source) for source in aside} == held_out
    for source in aside or load_sources(path, limit=200):
        assert all(record.instruction and record.output for record in source)
