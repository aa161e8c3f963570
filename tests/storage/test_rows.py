"""Rows of a population: what is put is what is taken, in memory and in a file, and saved rows come back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.errors import RunError
from devft_jax.storage import rows as banks
from devft_jax.storage.rows import BLOCK, Rows, SavedRows, save_rows

ROW = {
    "a": jax.ShapeDtypeStruct((3, 2), jnp.float32),
    "b": (jax.ShapeDtypeStruct((), jnp.bool_), jax.ShapeDtypeStruct((4,), jnp.bfloat16)),
    "c": jax.ShapeDtypeStruct((0, 5), jnp.int32),
}
KINDS = pytest.mark.parametrize("in_memory", [0, 2**30], ids=["file", "memory"])


def rows_of(count, seed=0):
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: generator.integers(0, 9, (count, *leaf.shape)).astype(leaf.dtype), ROW)


def assert_same(found, wanted):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one, other)


@KINDS
@settings(max_examples=20, deadline=None)
@given(writes=st.lists(st.lists(st.integers(0, 9), max_size=5, unique=True), max_size=4))
def test_what_is_put_is_taken_and_nobody_elses_row_changes(in_memory, writes):
    rows = Rows(ROW, 10, in_memory=in_memory)
    known = {}
    for seed, positions in enumerate(writes):
        new = rows_of(len(positions), seed)
        rows.put(np.array(positions, np.int64), new)
        assert_same(rows.take(np.array(positions, np.int64)), new)
        known |= {client: jax.tree.map(lambda leaf, at=at: leaf[at], new) for at, client in enumerate(positions)}
    assert np.flatnonzero(rows.stored).tolist() == sorted(known)
    for client, row in known.items():
        assert_same(jax.tree.map(lambda leaf: leaf[0], rows.take(np.array([client]))), row)


@KINDS
def test_saved_rows_come_back_a_block_at_a_time(in_memory, tmp_path):
    positions = np.random.default_rng(0).permutation(3 * BLOCK)[: 2 * BLOCK + 7]
    rows, empty = Rows(ROW, 3 * BLOCK, in_memory=in_memory), Rows({}, 5)
    rows.put(positions, rows_of(len(positions)))
    for _ in range(2):  # the second takes the first one's place
        save_rows(tmp_path / "bank" / "rows", {"full": rows, "stage": empty})
    saved = SavedRows(tmp_path / "bank" / "rows")
    again, nothing = Rows(ROW, 3 * BLOCK, in_memory=in_memory), Rows({}, 5)
    saved.restore("full", again)
    saved.restore("stage", nothing)
    saved.close()
    np.testing.assert_array_equal(again.stored, rows.stored)
    assert_same(again.take(positions), rows.take(positions))
    assert not nothing.stored.any()
    assert [path.name for path in (tmp_path / "bank").iterdir()] == ["rows"]


def test_the_file_is_one_of_safetensors(tmp_path):
    from safetensors.numpy import load_file

    row = {"a": ROW["a"], "seen": ROW["b"][0]}
    rows = Rows(row, 4)
    new = jax.tree.map(lambda leaf: np.ones((2, *leaf.shape), leaf.dtype), row)
    rows.put(np.array([3, 1]), new)
    save_rows(tmp_path / "rows", {"full": rows})
    found = load_file(tmp_path / "rows")
    assert found["full.positions"].tolist() == [1, 3]
    np.testing.assert_array_equal(found["full.['a']"], new["a"])


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    rows = Rows(ROW, 4)
    rows.put(np.arange(4), rows_of(4))
    save_rows(tmp_path / "rows", {"full": rows})
    (tmp_path / "rows").write_bytes((tmp_path / "rows").read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut off"):
        SavedRows(tmp_path / "rows")


def test_a_population_takes_no_room_before_it_takes_part(tmp_path):
    row = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    rows = Rows(row, 100_000, folder=tmp_path)  # 400 GB
    assert rows.whole_bytes == 4 * 10**11
    assert rows.disk_bytes == 0
    rows.put(np.array([99_999]), np.ones((1, 1000, 1000), np.float32))
    assert rows.take(np.array([99_999])).sum() == 1e6
    assert 4 * 10**6 <= rows.disk_bytes < 5 * 10**6


def test_rows_in_memory_take_no_disk():
    rows = Rows(ROW, 4)
    rows.put(np.arange(4), rows_of(4))
    assert rows.disk_bytes == 0
    assert rows.whole_bytes == 4 * (24 + 1 + 8)


def test_a_full_disk_is_said_in_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    rows = Rows(ROW, 4, in_memory=0, folder=tmp_path)
    monkeypatch.setattr(banks.os, "pwrite", full)
    with pytest.raises(RunError, match=r"the clients' rows could not be stored in .*No space left on device.; free space"):
        rows.put(np.arange(4), rows_of(4))
