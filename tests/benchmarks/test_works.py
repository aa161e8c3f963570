"""The works that are written."""

from dataclasses import replace

import numpy as np
import pytest
from engine import first_order
from protocol import TARGETS, Work
from works import TINY, WORKS, initial_adapters, write_work

from devft_jax.errors import InputError


def test_every_client_trains_once_on_each_of_its_own_examples():
    order = first_order(clients=5, steps=3, batch=4)
    assert order.shape == (5, 3, 4)
    np.testing.assert_array_equal(np.sort(order.reshape(5, -1)), np.arange(60).reshape(5, 12))
    assert (np.diff(order.reshape(5, -1)) < 0).any()


def test_a_smaller_cohort_has_the_same_first_clients():
    np.testing.assert_array_equal(first_order(7, 2, 3)[:4], first_order(4, 2, 3))


def test_adapters_begin_as_peft_begins_them():
    adapters = initial_adapters(TINY, 8, np.random.default_rng(0))
    assert set(adapters) == {f"{name}.{factor}" for name in TARGETS for factor in "ab"}
    for name in TARGETS:
        fan_in, fan_out = TINY.projection_shape(name)
        a, b = adapters[f"{name}.a"], adapters[f"{name}.b"]
        assert a.shape == (TINY.layers, fan_in, 8)
        assert b.shape == (TINY.layers, 8, fan_out)
        assert not b.any()
        assert 0.9 * fan_in**-0.5 < np.abs(a).max() <= fan_in**-0.5


def test_sizes_are_what_the_names_promise(micro):
    sizes = {"tiny": (31_392, 2 * 16 * 10 * 256), "small": (1_000_576, 4 * 64 * 10 * 32)}
    for name, (parameters, tokens) in sizes.items():
        model = WORKS[name].model
        layer = sum(np.prod(model.projection_shape(target)) for target in ("q", "k", "v", "o", "gate", "up", "down"))
        counted = model.layers * (layer + 2 * model.width) + (2 * model.vocabulary + 1) * model.width
        assert counted == parameters
        shape = WORKS[name]
        assert shape.clients * shape.steps * shape.batch * shape.length == tokens
    assert Work(micro).name == "micro"


def test_real_text_is_asked_for(tmp_path):
    with pytest.raises(InputError, match=r"dolly needs Dolly's text; set --dolly\."):
        write_work(tmp_path, WORKS["dolly"])


def test_real_text_becomes_examples_of_one_prompt_and_one_answer(tmp_path):
    lines = "".join(f'{{"instruction": "Say {number}.", "output": "{number} it is."}}\n' for number in range(30))
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text(lines)
    shape = replace(WORKS["dolly"], clients=2, steps=2, batch=3)
    folder = tmp_path / "work"
    folder.mkdir()
    work = Work(write_work(folder, shape, dolly=str(tmp_path / "*.jsonl")))
    assert (work.clients, work.steps, work.batch) == (2, 2, 3)
    assert (work.prompt_lengths > 1).all()
    assert (work.prompt_lengths < work.lengths).all()
    with pytest.raises(InputError, match="fewer than 2 clients of 40 examples"):
        write_work(folder, replace(shape, steps=10, batch=4), dolly=str(tmp_path / "*.jsonl"))
