"""The benchmark's torch programs and this project's do the same work: the aggregated adapters after a round agree."""

import argparse

import numpy as np
import pytest

pytest.importorskip("torch", reason="parity needs torch: pip install 'devft-jax[parity]'")
pytest.importorskip("peft", reason="parity needs peft: pip install 'devft-jax[parity]'")

from tests.benchmarks.conftest import micro  # noqa: F401

pytestmark = pytest.mark.parity

OPTIONS = argparse.Namespace(threads=1)


@pytest.fixture
def expected(micro):  # noqa: F811
    from peft_loop import PeftLoop
    from protocol import Work

    program = PeftLoop(Work(micro), OPTIONS)
    program.round()
    return program.result()


def assert_same(program, expected):
    from works import WORKS

    program.round()
    program.round()
    adapters, loss = program.result()
    assert loss == pytest.approx(expected[1], rel=1e-5)
    for name, leaf in expected[0].items():
        np.testing.assert_allclose(adapters[name], leaf, atol=WORKS["micro"].tolerance, err_msg=name)


def test_the_engine_agrees_with_peft(micro, expected):  # noqa: F811
    from engine import Engine
    from protocol import Work

    assert_same(Engine(Work(micro)), expected)


def test_pfl_agrees_with_peft(micro, expected):  # noqa: F811
    pytest.importorskip("pfl", reason="pfl-research is in benchmarks/programs/requirements-torch.txt")
    from pfl_simulation import PflSimulation
    from protocol import Work

    assert_same(PflSimulation(Work(micro), OPTIONS), expected)
