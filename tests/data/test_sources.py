"""Reading records: every file form, every field layout, and a sentence for every way to fail."""

import gzip
import json
import sys
import types

import pytest

from devft_jax.data.built_in import BUILT_IN
from devft_jax.data.folders import held_out_files, named_part
from devft_jax.data.records import Record, Records, Turn
from devft_jax.data.sources import load_sources
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
    monkeypatch.setitem(sys.modules, "devft_jax.data.microtasks.generate", module)
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
    pytest.importorskip("devft_jax.data.microtasks.generate")
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
    def load_dataset(*found, split, trust_remote_code):
        assert trust_remote_code is False
        asked.append((found, split))
        return [{"question": "a", "answer": "b"}]

    asked = []
    fake_hub(monkeypatch, load_dataset)
    [source] = load_sources(spec)
    assert asked == [(arguments, split)]
    assert list(source) == [Record("a", "", "b", None, f"{spec}:1")]


def test_an_unreachable_or_empty_hub_data_set_is_an_input_error(monkeypatch):
    def load_dataset(*_, split, **options):
        raise ConnectionError("no route\nand a long trace")

    fake_hub(monkeypatch, load_dataset)
    with pytest.raises(InputError, match=r"'owner/name' is no local file .*\(no route\); check"):
        load_sources("owner/name")
    fake_hub(monkeypatch, lambda *_, split, **options: [])
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
        ([ASKED[0], {"role": "assistant", "content": "\ud800"}], r"a\.jsonl:2 holds \\ud800, half of a character; correct"),
    ],
)
def test_broken_conversations_are_named_by_line_and_turn(tmp_path, messages, message):
    with pytest.raises(InputError, match=message):
        read(write_rows(tmp_path / "a.jsonl", [{"messages": ASKED}, {"messages": messages}]))


# ---- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("test testing global_test alpaca_gpt4_eval Valid VAL val my.val.data evaluation dev2 9dev a_val", "held-out"),
        ("validation-00000-of-00001 held_out my.heldout.data held-out", "held-out"),
        ("train Training train_dev training-test train.val", "training"),
        ("latest contest evaluations device_3 value interval évals testé validity trainer", None),
    ],
)
def test_what_names_say_about_the_split(names, expected):
    assert {name: named_part(name) for name in names.split()} == dict.fromkeys(names.split(), expected)
    assert named_part("my val") == "held-out"


def test_the_words_are_all_those_of_the_datasets_package():
    from datasets.data_files import NON_WORDS_CHARS, SPLIT_KEYWORDS

    for split, words in SPLIT_KEYWORDS.items():
        expected = "training" if str(split) == "train" else "held-out"
        for word in words:
            separators = [letter for letter in NON_WORDS_CHARS if not letter.isdigit()] + ["0", "9"]
            for between in separators:
                assert named_part(f"a{between}{word.upper()}{between}b") == named_part(word) == expected


def test_subfolders_called_after_splits_belong_to_the_folder(tmp_path):
    for name in ("train/a", "train/test_notes", "val/b", "data/dev/c", "data/d", "data/Test-1/train", "images/e", "f"):
        write_rows(tmp_path / f"{name}.jsonl", [ALPACA])
    (tmp_path / "data" / "data").symlink_to(tmp_path)
    names = ["data/d", "f", "train/a", "train/test_notes"]
    assert [source.name for source in load_sources(str(tmp_path))] == names
    aside = ["data/Test-1/train", "data/dev/c", "val/b"]
    assert [source.name for source in load_sources(str(tmp_path), held_out=True)] == aside
    assert [path.relative_to(tmp_path).as_posix() for path in held_out_files(str(tmp_path))] == [f"{n}.jsonl" for n in aside]


def test_a_folder_sets_its_test_files_aside_and_nothing_else_does(tmp_path):
    for name in ("train.csv", "more.jsonl", "test.json", "dataset_info.json", "config.json", ".hidden.json", "README.md"):
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


def fill(path, output):
    """One record in any format, by the file's suffix."""
    row = ALPACA | {"output": output}
    if path.name.endswith("parquet"):
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_parquet(path, [row])
    if ".json" in path.name:
        return write(path, json.dumps(row) + "\n" if "jsonl" in path.name else json.dumps([row]))
    between = "," if ".csv" in path.name else "\t"
    return write(path, between.join(row) + "\n" + between.join(row.values()) + "\n")


@pytest.mark.parametrize(
    ("names", "whole"),
    [
        ("train-00000-of-00002-0a1b2c3d4e5f6071.parquet train-00001-of-00002-96f1d5ab2c3d4e5f.parquet", "train"),
        ("train-00000-of-00002.jsonl train-00001-of-00002.jsonl", "train"),
        ("train-00000-of-00002-0a1b2c3d4e5f6071.csv.gz train-00001-of-00002-0a1b2c3d4e5f6072.csv.gz", "train"),
        ("c4-train.00000-of-00002.json.gz c4-train.00001-of-00002.json.gz", "c4-train"),
        ("all_0000_of_0002.tsv all_0001_of_0002.tsv", "all"),
        ("data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet", "data/train"),
        ("train/0000.parquet train/0001.parquet", "train"),
    ],
)
def test_every_naming_of_shards_is_one_source(tmp_path, names, whole):
    for number, name in enumerate(names.split()):
        fill(tmp_path / name, str(number))
    for spec in (str(tmp_path), str(tmp_path / "**/*.*"), [str(tmp_path / name) for name in reversed(names.split())]):
        [source] = load_sources(spec)
        assert source.name == (whole if isinstance(spec, str) else whole.rpartition("/")[2])
        assert [record.output for record in source] == ["0", "1"]


def test_shards_that_are_missing_are_said_and_two_sets_of_them_refused(tmp_path):
    for number in (1, 3):
        fill(tmp_path / f"train-{number:05}-of-00004.jsonl", str(number))
    with pytest.warns(UserWarning, match=r"'train' in .* lacks 2 of its 4 parts, the first is 00000; only the others"):
        assert [record.output for record in read(tmp_path)] == ["1", "3"]
    fill(tmp_path / "train-00001-of-00004-0a1b2c3d4e5f6071.jsonl", "again")
    with pytest.raises(InputError, match=r"are both part 1 of 'train'; remove the older one"):
        load_sources(str(tmp_path))
    (tmp_path / "train-00001-of-00004-0a1b2c3d4e5f6071.jsonl").unlink()
    fill(tmp_path / "train-00000-of-00005.jsonl", "other")
    with pytest.raises(InputError, match=r"one of 4 parts of 'train' and .* one of 5; remove those of the older set"):
        load_sources(str(tmp_path))


def test_numbered_files_of_clients_are_no_shards(tmp_path):
    for name in ("client-00000", "client-00001", "1-of-2", "2-of-2"):
        fill(tmp_path / f"{name}.jsonl", "a")
    for name in ("0000", "0001"):
        fill(tmp_path / f"{name}.parquet", "a")
    assert len(load_sources(str(tmp_path))) == 6


# ---- odd content and odd names -----------------------------------------------------------------------------------------

TWICE = '{"instruction": "a", "instruction": "b", "output": "c"}'
LONG = '{"instruction": 1' + "0" * 5000 + ', "output": "c"}'
GOOD = '{"instruction": "a", "output": "b"}'


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.jsonl.gz"])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        (TWICE, "names 'instruction' twice in one object"),
        (LONG, "holds an integer of 5,001 digits"),
        ('{"instruction": "a\\udc00", "output": "c"}', "half of a character"),
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


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "data is empty"),
        ("a\0b.jsonl", "NUL character"),
        ("a\udcffb.jsonl", "not valid UTF-8"),
        ("~nobody-of-this-name/a.jsonl", "home folder that is not known"),
        ("a" * 300 + ".jsonl", "too long"),
        ("microtasks:train:9999999999999999", "more than the 75,000 records of that split; lower it"),
        ("microtasks:train:" + "9" * 5000, "more than the 75,000 records"),
    ],
)
def test_odd_names_are_one_sentence(spec, message):
    with pytest.raises(InputError, match=message) as caught:
        load_sources(spec)
    assert len(str(caught.value)) < 300


def test_a_file_name_that_is_no_text_is_refused_in_a_folder(tmp_path):
    import os

    (tmp_path / "ok.jsonl").write_text(GOOD)
    with open(os.fsencode(tmp_path) + b"/a\xff.jsonl", "w") as file:
        file.write(GOOD)
    for spec in (str(tmp_path), str(tmp_path / "*")):
        with pytest.raises(InputError, match=r"a\\udcff\.jsonl' is not valid UTF-8; rename the file"):
            load_sources(spec)


def test_names_with_terminal_escapes_are_true_in_data_and_harmless_in_messages(tmp_path):
    [source] = load_sources(write(tmp_path / "a\x1b[2J.jsonl", GOOD))
    assert source.name == "a\x1b[2J"
    with pytest.raises(InputError, match=r"a\\x1b\[2J\.jsonl:1 has no field") as caught:
        read(write(tmp_path / "a\x1b[2J.jsonl", '{"b\\u001b": "c"}'))
    assert "\x1b" not in str(caught.value)


# ---- nothing that data brings is run -----------------------------------------------------------------------------------


def test_a_loading_script_is_never_run(tmp_path, monkeypatch):
    for folder in ("trap", "owner/trap"):
        script = write(tmp_path / folder / "trap.py", f"open({str(tmp_path / 'sprung')!r}, 'w')")
        write(tmp_path / folder / "__init__.py", f"open({str(tmp_path / 'sprung')!r}, 'w')")
        write_rows(tmp_path / folder / "a.jsonl", [ALPACA])
    monkeypatch.chdir(tmp_path)
    assert len(read("trap")) == len(read("owner/trap")) == len(read("trap/*.jsonl")) == 1
    for spec in ("owner/trap:train", "owner/trap/main", "owner/trap/main:train"):
        with pytest.raises(InputError, match=r"does not exist, and 'owner/trap' is a file or folder here"):
            load_sources(spec)
    with pytest.raises(InputError, match=r"trap\.py:1 is not valid JSON"):
        load_sources(script)
    assert not (tmp_path / "sprung").exists()


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
