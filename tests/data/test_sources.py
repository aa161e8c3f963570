"""What one option names becomes sources, and a sentence for what cannot."""

import sys
import types

import pytest

from devft_jax.data.records import Record
from devft_jax.data.sources import load_sources
from devft_jax.errors import InputError
from tests.data.written import ALPACA, GOOD, everything, read, write, write_rows


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
    with pytest.raises(InputError, match=r"'owner/name' is not a local file .*\(no route\); check"):
        load_sources("owner/name")
    fake_hub(monkeypatch, lambda *_, split, **options: [])
    with pytest.raises(InputError, match=r"'owner/name' holds no record; choose another split"):
        load_sources("owner/name")


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("./absent", {}, r"'\./absent' does not exist"),
        ("absent/", {}, r"'absent/' does not exist"),
        ("absent.jsonl", {}, r"'absent\.jsonl' does not exist"),
        ("absent_*.json", {}, r"'absent_\*\.json' matches no file .*quote a glob"),
        ((), {}, r"data is empty"),
        ("microtasks:other", {}, r"'microtasks:other' is not valid; write microtasks:SPLIT"),
        ("microtasks:test:many", {}, r"'microtasks:test:many' is not valid"),
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


def test_names_with_terminal_escapes_are_true_in_data_and_harmless_in_messages(tmp_path):
    [source] = load_sources(write(tmp_path / "a\x1b[2J.jsonl", GOOD))
    assert source.name == "a\x1b[2J"
    with pytest.raises(InputError, match=r"a\\x1b\[2J\.jsonl:1 has no field") as caught:
        read(write(tmp_path / "a\x1b[2J.jsonl", '{"b\\u001b": "c"}'))
    assert "\x1b" not in str(caught.value)


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
