"""Which checkpoints a run keeps, and how a part of one is read."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.errors import InputError
from devft_jax.storage import RunFolder

ARRAYS = {"full": {"a": jnp.arange(6.0).reshape(3, 2)}, "bank": {"seen": jnp.zeros(5)}}


def save(folder: RunFolder, round_index: int, stage: int, lengthened_after: int = 0) -> None:
    arrays = jax.tree.map(lambda leaf: leaf + round_index, ARRAYS)
    folder.save_checkpoint(round_index, arrays, {"stage": stage, "lengthened_after": lengthened_after})


def kept(folder: RunFolder) -> set[int]:
    return {int(path.name) for path in (folder.path / "checkpoints").iterdir()}


@settings(max_examples=5)
@given(stage_rounds=st.lists(st.integers(1, 4), min_size=1, max_size=4), every=st.integers(1, 3), data=st.data())
def test_the_newest_two_and_the_last_of_every_stage_are_kept(tmp_path_factory, stage_rounds, every, data):
    stages = np.repeat(np.arange(len(stage_rounds)), stage_rounds).tolist()
    path = tmp_path_factory.mktemp("run")
    saved: list[int] = []
    folder = RunFolder(path)
    with folder:
        for round_index, stage in enumerate(stages, 1):
            if round_index % every == 0 or round_index == len(stages):
                save(folder, round_index, stage)
                saved.append(round_index)
                last = {stages[index - 1]: index for index in saved}
                assert folder.last_rounds() == last
                assert kept(folder) == {*saved[-2:], *last.values()}
                assert folder.latest_round() == round_index
                asked = data.draw(st.integers(1, len(stages) + 1))
                assert folder.checkpoint_before(asked) == max((r for r in kept(folder) if r < asked), default=None)
    with RunFolder(path) as again:
        assert again.last_rounds() == last


def test_another_process_keeps_them_too(tmp_path):
    for round_index, stage in ((1, 0), (2, 0), (3, 1), (4, 1), (5, 1)):
        with RunFolder(tmp_path) as folder:
            save(folder, round_index, stage)
    assert kept(folder) == {2, 4, 5}


def test_where_a_run_was_lengthened_is_kept(tmp_path):
    with RunFolder(tmp_path) as folder:
        for round_index in range(1, 9):
            save(folder, round_index, 0, lengthened_after=3 if round_index > 3 else 0)
    assert kept(folder) == {3, 7, 8}


def test_a_half_removed_checkpoint_is_removed(tmp_path):
    with RunFolder(tmp_path) as folder:
        for round_index in (1, 2):
            save(folder, round_index, 0)
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "record")
    with RunFolder(tmp_path) as folder:
        assert folder.last_rounds() == {0: 2}
        for round_index in (3, 4):
            save(folder, round_index, 1)
        assert kept(folder) == {2, 3, 4}


def test_a_part_of_a_checkpoint(tmp_path):
    like = {"full": jax.eval_shape(lambda: ARRAYS["full"])}
    with RunFolder(tmp_path) as folder:
        save(folder, 7, 0)
        part = folder.read_some_arrays(7, like)
        assert part.keys() == {"full"}
        np.testing.assert_array_equal(part["full"]["a"], ARRAYS["full"]["a"] + 7)
        np.testing.assert_array_equal(folder.read_arrays(7, ARRAYS)["bank"]["seen"], np.full(5, 7.0))
        other = {"full": {"a": jax.ShapeDtypeStruct((4, 2), jnp.float32)}}
        with pytest.raises(InputError, match=r"is of a model of other shapes \(full\.a is \(3, 2\), not \(4, 2\)\)"):
            folder.read_some_arrays(7, other)
        shutil.rmtree(tmp_path / "checkpoints" / "7" / "arrays")
        with pytest.raises(InputError, match="cannot be read"):
            folder.read_some_arrays(7, like)
