"""Reading records: every file form, every field layout, and a sentence for every way to fail."""

import gzip
import json
import sys
import types

import pytest

from devft_jax.data.sources import BUILT_IN, Record, load_sources
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


@pytest.mark.parametrize("content", [gzip.compress(b'[{"a": 1}]' * 50)[:-9], b"\x1f\x8bnot gzip at all", b"\xff\xfe[]"])
def test_unreadable_bytes_are_an_input_error(tmp_path, content):
    path = tmp_path / "a.json.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json\.gz cannot be read as UTF-8 text"):
        load_sources(str(path))


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("./absent", {}, r"'\./absent' does not exist"),
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
