"""Built-in data has splits and counts."""

import sys
import types

import pytest

from devft_jax.data.built_in import BUILT_IN
from devft_jax.data.records import Record
from devft_jax.data.sources import load_sources


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
