"""Stores of arrays: whole or absent, whoever else writes; and a data set that memory need not hold."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from devft_jax.data.store import StoreWriter, read_store

DTYPES = {"ids": np.dtype("<i4"), "flags": np.dtype(bool)}


def fill(path, count=10, note="n"):
    with StoreWriter(path, DTYPES) as store:
        for start in range(0, count, 4):
            ids = np.arange(start, min(start + 4, count))
            store.append(ids=ids, flags=ids % 2 == 0)
        return store.publish(note)


def assert_holds(found, count=10, note="n"):
    arrays, told = found
    assert told == note
    np.testing.assert_array_equal(arrays["ids"], np.arange(count))
    np.testing.assert_array_equal(arrays["flags"], np.arange(count) % 2 == 0)
    assert {name: array.dtype for name, array in arrays.items()} == DTYPES


def test_what_is_published_is_found_and_mapped_read_only(tmp_path):
    path = tmp_path / "folder" / "store"
    assert read_store(path, DTYPES) is None
    assert_holds(fill(path, note=["a", 1]), note=["a", 1])
    arrays, _ = read_store(path, DTYPES)
    assert_holds((arrays, "n"))
    assert isinstance(arrays["ids"].base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        arrays["ids"][0] = 1
    assert [item.name for item in path.parent.iterdir()] == ["store"]


def test_empty_arrays_are_stored(tmp_path):
    assert_holds(fill(tmp_path / "store", 0), 0)
    assert_holds(read_store(tmp_path / "store", DTYPES), 0)


def test_a_store_that_was_not_published_never_counts(tmp_path):
    with StoreWriter(tmp_path / "store", DTYPES) as store:
        store.append(ids=np.arange(3), flags=np.ones(3, bool))
        assert read_store(tmp_path / "store", DTYPES) is None
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_nothing_that_counts(tmp_path):
    program = """
import os, pathlib, sys
import numpy as np
from devft_jax.data.store import StoreWriter
store = StoreWriter(pathlib.Path(sys.argv[1]), {"ids": np.dtype("<i4"), "flags": np.dtype(bool)})
store.append(ids=np.arange(3), flags=np.ones(3, bool))
os._exit(9)
"""
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program, tmp_path / "store"], cwd=root).returncode == 9
    assert read_store(tmp_path / "store", DTYPES) is None
    assert_holds(fill(tmp_path / "store"))


def test_what_a_killed_writer_left_is_removed_a_day_on(tmp_path):
    abandoned, busy = tmp_path / "devft-a.tmp", tmp_path / "devft-b.tmp"
    two_days_ago = time.time() - 2 * 24 * 3600
    for folder in (abandoned, busy):
        folder.mkdir()
        (folder / "ids").write_bytes(b"1234")
        os.utime(folder, (two_days_ago, two_days_ago))
    os.utime(abandoned / "ids", (two_days_ago, two_days_ago))
    fill(tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["devft-b.tmp", "store"]


def test_the_second_of_two_writers_finds_the_firsts(tmp_path):
    path = tmp_path / "store"
    with StoreWriter(path, DTYPES) as late:
        late.append(ids=np.arange(10), flags=np.arange(10) % 2 == 0)
        first, _ = fill(path)
        assert_holds(late.publish("n"))
    assert_holds((first, "n"))
    assert [item.name for item in tmp_path.iterdir()] == ["store"]


def test_a_store_without_a_place_lasts_as_long_as_its_arrays(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert_holds(fill(None))
    assert list(tmp_path.iterdir()) == []


_MEASURED = """
import re, sys
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from devft_jax.data import DataOptions, build_federated_data

backend = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
peaks = []
for path in sys.argv[1:]:
    data = build_federated_data(DataOptions(data=path, clients=10, test_fraction=0.01), tokenizer)
    # Not getrusage, whose peak a new process takes over from the one that started it.
    with open("/proc/self/status") as status:
        peaks.append(int(re.search(r"VmHWM:\\s*(\\d+) kB", status.read())[1]))
print(len(data.train) + len(data.test), peaks[1] - peaks[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_memory_does_not_grow_with_the_data(tmp_path, suffix):
    count, text = 200_000, "x" * 900

    def write(name, rows):
        path = tmp_path / f"{name}.{suffix}"
        with path.open("w") as file:
            if suffix == "csv":
                file.write("instruction,output\n")
            for number in range(rows):
                row = f"{text} {number},a\n"
                file.write(row if suffix == "csv" else json.dumps({"instruction": row, "output": "a"}) + "\n")
        return path

    paths = [write("small", 5000), write("large", count)]
    size = paths[1].stat().st_size
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", _MEASURED, *map(str, paths)]
    told = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    examples, grown = map(int, told.split())
    assert examples == count
    # What a run keeps of every example is a few numbers of its own and pages of the store.
    assert grown * 1024 < size / 3


def test_a_link_in_the_place_of_a_store_is_not_read_through(tmp_path):
    dtypes = {"a": np.dtype("<i4")}
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").write_bytes(bytes(12))
    (tmp_path / "stores").mkdir()
    (tmp_path / "stores" / "one").symlink_to(tmp_path / "elsewhere")
    with StoreWriter(tmp_path / "stores" / "one", dtypes) as writer:
        writer.append(a=np.arange(3))
        with pytest.raises(OSError, match="one"):
            writer.publish(None)
    assert (tmp_path / "elsewhere" / "a").read_bytes() == bytes(12)
    assert [path.name for path in (tmp_path / "stores").iterdir()] == ["one"]


@pytest.mark.parametrize("index", ["[" * 100_000, "{}", "3", '{"bytes": 1' + "0" * 5000 + "}", "\udcff"])
def test_an_odd_index_is_no_store(tmp_path, index):
    (tmp_path / "store.json").write_bytes(index.encode("utf-8", "surrogateescape"))
    assert read_store(tmp_path, {"a": np.dtype("<i4")}) is None


def test_a_note_that_was_changed_is_no_store(tmp_path):
    fill(tmp_path / "store")
    index = tmp_path / "store" / "store.json"
    fields = json.loads(index.read_text())
    assert read_store(tmp_path / "store", DTYPES) is not None
    for changed in ({**fields, "note": "other"}, {name: fields[name] for name in fields if name != "note_crc32"}, [], 3):
        index.write_text(json.dumps(changed))
        assert read_store(tmp_path / "store", DTYPES) is None
