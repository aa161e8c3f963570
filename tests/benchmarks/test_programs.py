"""The programs that need no other environment do the same work."""

import argparse

import jax.numpy as jnp
import llama
import numpy as np
import pytest
from devft_stages import measure
from engine import Engine
from protocol import Work
from vmap_round import VmapRound
from works import WORKS


@pytest.fixture(scope="module")
def engine(micro):
    program = Engine(Work(micro))
    program.round()
    return program


@pytest.mark.parametrize("at_once", [None, 3])
def test_the_engine_and_plain_jax_agree(micro, engine, at_once):
    plain = VmapRound(Work(micro), argparse.Namespace(at_once=at_once))
    plain.round()
    (mine, my_loss), (theirs, their_loss) = engine.result(), plain.result()
    assert my_loss == pytest.approx(their_loss, rel=1e-5)
    for name in theirs:
        np.testing.assert_allclose(mine[name], theirs[name], atol=WORKS["micro"].tolerance, err_msg=name)
        assert np.abs(mine[name] - Work(micro).adapters[name]).max() > 1e-4


def test_every_round_is_the_same_work(engine):
    before, loss = engine.result()
    before = {name: np.array(leaf) for name, leaf in before.items()}
    flops = engine.figures()["flops"]
    engine.round()
    after, again = engine.result()
    assert again == loss
    assert engine.figures()["flops"] == flops > 0
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])


def test_fewer_layers_cost_fewer_operations(micro, engine):
    shallow = Engine(Work(micro), layers=1)
    shallow.round()
    assert shallow.figures()["flops"] < engine.figures()["flops"]
    adapters, _ = shallow.result()
    assert all(leaf.shape[0] == 1 for leaf in adapters.values())


def test_a_round_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(llama, "available_bytes", lambda: -1)
    with pytest.raises(MemoryError, match=r"the compiled round needs 0\.0 GB besides its inputs and -0\.0 are free"):
        llama.compiled(jnp.sin, jnp.ones(4))


def test_another_data_order_is_refused(micro):
    work = Work(micro)
    work.order = work.order[:, ::-1]
    with pytest.raises(ValueError, match="a different data order from the engine's; write it again"):
        Engine(work)


def test_changes_of_stage_are_timed_part_by_part(micro):
    stages = measure(Work(micro), "none", times=2, capacities=(1, 2))
    assert [stage["layers"] for stage in stages] == [1, 2]
    for stage in stages:
        for part in ("build", "round", "transfer"):
            assert len(stage[part]["wall"]) == len(stage[part]["cpu"]) == 2
            assert stage[part]["cold"] > 0
