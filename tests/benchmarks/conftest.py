"""The benchmarks are scripts that import the files beside them: their folders go on the path, as they do when one is run."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "programs")]


@pytest.fixture(scope="session")
def micro(tmp_path_factory):
    """A written work of four clients whose rows differ in length and in where their answers begin."""
    from works import WORKS, write_work

    folder = tmp_path_factory.mktemp("micro")
    write_work(folder, replace(WORKS["micro"], length=9))
    with np.load(folder / "examples.npz") as stored:
        arrays = dict(stored)
    rng = np.random.default_rng(3)
    arrays["lengths"] = rng.integers(4, 10, len(arrays["lengths"]))
    arrays["prompt_lengths"] = rng.integers(0, 3, len(arrays["lengths"])).astype(np.int32)
    inside = np.arange(9) < arrays["lengths"][:, None]
    arrays["tokens"] = np.where(inside, arrays["tokens"], 0)
    np.savez(folder / "examples.npz", allow_pickle=False, **arrays)
    return folder
