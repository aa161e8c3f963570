"""Rows of clients that move from one process to another; the processes are threads here."""

import threading

import jax
import numpy as np
import pytest

from devft_jax.federated.row_exchange import move_rows
from devft_jax.runtime.processes import Processes
from devft_jax.storage.rows import Rows

CLIENTS, COUNT = 9, 3
ROW = {"a": jax.ShapeDtypeStruct((2, 3), np.float32), "b": jax.ShapeDtypeStruct((), np.int8)}


class Threads(Processes):
    """A process that is a thread: words are summed through a list that all share."""

    def __init__(self, index, words, barrier):
        super().__init__(index, COUNT)
        object.__setattr__(self, "words", words)
        object.__setattr__(self, "barrier", barrier)

    def sum_of_words(self, words):
        self.words[self.index] = words.copy()
        self.barrier.wait()
        total = sum(self.words.values())
        self.barrier.wait()
        return total


@pytest.mark.parametrize("in_memory", [2**20, 0])
def test_rows_and_what_belongs_to_them_move_to_the_process_that_trains_them(in_memory, monkeypatch):
    # Two rows of a block, so that several blocks travel.
    monkeypatch.setattr("devft_jax.federated.row_exchange.MOST_BYTES", 128)
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(size=(CLIENTS, 2, 3)).astype(np.float32), "b": rng.integers(-9, 9, CLIENTS).astype(np.int8)}
    words, barrier = {}, threading.Barrier(COUNT, timeout=30)
    holder = np.arange(CLIENTS) % COUNT
    # The stage's row is there for some clients only.
    staged = np.arange(CLIENTS) < 5
    positions = np.array([7, 1, 3, 8, 4])
    to = np.array([0, 2, 1, 0, 2])
    found = {}

    def work(index):
        mine = np.flatnonzero(holder == index)
        full, stage = (Rows(ROW, CLIENTS, in_memory=in_memory) for _ in range(2))
        full.put(mine, jax.tree.map(lambda leaf: leaf[mine], values))
        mine = mine[staged[mine]]
        stage.put(mine, jax.tree.map(lambda leaf: leaf[mine] + 1, values))
        since = np.where(holder == index, np.arange(CLIENTS), 0).astype(np.int32)
        move_rows(Threads(index, words, barrier), [full, stage], since, positions, holder[positions], to)
        found[index] = full, stage, since

    threads = [threading.Thread(target=work, args=(index,)) for index in range(COUNT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == COUNT
    now = holder.copy()
    now[positions] = to
    for index, (full, stage, since) in found.items():
        np.testing.assert_array_equal(full.stored, now == index)
        np.testing.assert_array_equal(stage.stored, (now == index) & staged)
        for rows, more in ((full, 0), (stage, 1)):
            held = np.flatnonzero(rows.stored)
            for name, leaf in rows.take(held).items():
                np.testing.assert_array_equal(leaf, values[name][held] + more)
        np.testing.assert_array_equal(since[now == index], np.flatnonzero(now == index))
