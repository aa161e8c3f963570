"""Which checkpoints a run keeps, and how a part of one is read."""

import functools
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.config.files import to_plain
from devft_jax.config.run_config import RunConfig
from devft_jax.errors import InputError
from devft_jax.storage.ownership import RUN
from devft_jax.storage.rows import Rows, save_rows
from devft_jax.storage.run_folder import RunFolder
from tests.run_records import checkpoint_record, round_record, run_totals

ARRAYS = {"full": {"a": jnp.arange(6.0).reshape(3, 2)}, "bank": {"seen": jnp.zeros(5)}}


def of_checkpoint(round_index: int, stage: int, lengthened_after: int = 0):
    return checkpoint_record(round=round_index, stage=stage, totals=run_totals(lengthened_after=lengthened_after))


def save(folder: RunFolder, round_index: int, stage: int, lengthened_after: int = 0) -> None:
    arrays = jax.tree.map(lambda leaf: leaf + round_index, ARRAYS)
    folder.checkpoints.save(round_index, arrays, of_checkpoint(round_index, stage, lengthened_after))


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
                assert folder.checkpoints.last_rounds() == last
                assert kept(folder) == {*saved[-2:], *last.values()}
                assert folder.checkpoints.latest_round() == round_index
                asked = data.draw(st.integers(1, len(stages) + 1))
                assert folder.checkpoints.before(asked) == max((r for r in kept(folder) if r < asked), default=None)
    with RunFolder(path) as again:
        assert again.checkpoints.last_rounds() == last


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
    (tmp_path / "checkpoints" / "1" / "record.json").unlink()
    with RunFolder(tmp_path) as folder:
        assert folder.checkpoints.last_rounds() == {0: 2}
        for round_index in (3, 4):
            save(folder, round_index, 1)
        assert kept(folder) == {2, 3, 4}


def test_a_part_of_a_checkpoint(tmp_path):
    like = {"full": jax.eval_shape(lambda: ARRAYS["full"])}
    with RunFolder(tmp_path) as folder:
        save(folder, 7, 0)
        part = folder.checkpoints.read_some_arrays(7, like)
        assert part.keys() == {"full"}
        np.testing.assert_array_equal(part["full"]["a"], ARRAYS["full"]["a"] + 7)
        np.testing.assert_array_equal(folder.checkpoints.read_arrays(7, ARRAYS)["bank"]["seen"], np.full(5, 7.0))
        other = {"full": {"a": jax.ShapeDtypeStruct((4, 2), jnp.float32)}}
        with pytest.raises(InputError, match=r"is of a model of other shapes \(full\.a is \(3, 2\), not \(4, 2\)\)"):
            folder.checkpoints.read_some_arrays(7, other)
    shutil.rmtree(tmp_path / "checkpoints" / "7" / "arrays")
    with RunFolder(tmp_path) as folder, pytest.raises(InputError, match="cannot be read"):
        folder.checkpoints.read_some_arrays(7, like)


def some_bank(path):
    rows = Rows({"seen": jax.ShapeDtypeStruct((3,), jnp.float32)}, 4)
    rows.put(np.arange(3), {"seen": np.arange(9, dtype=np.float32).reshape(3, 3)})
    save_rows(path, {"full": rows})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints of rounds 1 and 2, the rows of clients and metrics."""
    path = tmp_path_factory.mktemp("saved")
    with RunFolder(path) as folder:
        for round_index in (1, 2):
            folder.metrics.append(round_record(round=round_index, loss=0.1 + round_index))
            folder.checkpoints.save(round_index, ARRAYS, of_checkpoint(round_index, 0), some_bank)
    return path


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


HARMS = {
    "flipped": flipped,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
    "added": lambda path: (path.parent / "more").write_text("x"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_every_byte_that_a_resume_reads_is_checked(saved, tmp_path, harm):
    newest = [path for path in (saved / "checkpoints" / "2").rglob("*") if path.is_file()]
    assert len(newest) > 5
    names = [path.relative_to(saved) for path in [*newest, saved / "bank" / "round_2.safetensors"]]
    for number, name in enumerate(names):
        if harm == "added" and name.parent.name == "bank":
            continue
        copy = tmp_path / str(number)
        shutil.copytree(saved, copy)
        HARMS[harm](copy / name)
        with RunFolder(copy) as folder:
            stored = folder.checkpoints
            for read in (stored.check, stored.read_record, functools.partial(stored.read_arrays, like=ARRAYS)):
                with pytest.raises(
                    InputError, match=r"checkpoints/2 cannot be read \(.*\); delete it to resume from round 1"
                ):
                    read(2)
            folder.checkpoints.check(1)


def test_a_flip_of_any_bit_of_the_digests_is_noticed(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "a")
    file = tmp_path / "a" / "checkpoints" / "2" / "digests.json"
    content = file.read_bytes()
    start = content.index(b'"metrics"')
    for place in range(start, len(content)):
        for bit in range(8):
            file.write_bytes(content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :])
            with RunFolder(tmp_path / "a") as folder, pytest.raises(InputError, match="to resume from round 1"):
                folder.checkpoints.check(2)


def test_a_pipe_in_a_checkpoint_is_not_waited_for(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "a")
    os.mkfifo(tmp_path / "a" / "checkpoints" / "2" / "more")
    with RunFolder(tmp_path / "a") as folder, pytest.raises(InputError, match="more is not a regular file"):
        folder.checkpoints.check(2)


def test_who_reads_makes_nothing_and_keeps_writers_out(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "a", ignore=shutil.ignore_patterns(".lock"))
    with RunFolder(tmp_path / "a").reading() as folder:
        assert folder.checkpoints.latest_round() == 2
    assert not (tmp_path / "a" / ".lock").exists()
    one, other = (RunFolder(tmp_path / "a") for _ in range(2))
    with one, pytest.raises(InputError, match="is in use by a run; wait for it"), other.reading():
        pass
    with other.reading(), one.reading(), pytest.raises(InputError, match="is in use by another"), RunFolder(tmp_path / "a"):
        pass


def test_what_is_whole_is_accepted(saved):
    with RunFolder(saved) as folder:
        for round_index in (1, 2):
            folder.checkpoints.check(round_index)
            arrays = folder.checkpoints.read_arrays(round_index, ARRAYS)
            np.testing.assert_array_equal(arrays["full"]["a"], ARRAYS["full"]["a"])


def test_metrics_of_saved_rounds_are_checked_and_later_ones_are_not(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "a")
    lines = (saved / "metrics.jsonl").read_text().splitlines(keepends=True)
    with RunFolder(tmp_path / "a") as folder:
        (folder.path / "metrics.jsonl").write_text("".join(lines) + '{"round": 3, "stage": 0}\n{"rou')
        folder.checkpoints.check(2)
        (folder.path / "metrics.jsonl").write_text(lines[0] + lines[1].replace("2.1", "2.2"))
        with pytest.raises(InputError, match=r"metrics.jsonl has changed .*delete \S+checkpoints/2 to resume from round 1"):
            folder.checkpoints.check(2)
        folder.checkpoints.check(1)
        (folder.path / "metrics.jsonl").unlink()
        with pytest.raises(InputError, match=r"metrics.jsonl has changed .*start again in another folder"):
            folder.checkpoints.check(2)


def test_the_way_on_passes_over_what_is_damaged_too(saved, tmp_path):
    with RunFolder(tmp_path / "a") as folder:
        for round_index, stage in ((1, 0), (2, 1), (3, 2)):
            save(folder, round_index, stage)
    for damaged in (2, 3):
        flipped(tmp_path / "a" / "checkpoints" / str(damaged) / "record.json")
    words = r"delete \S+/checkpoints/2 and \S+/checkpoints/3 to resume from round 1"
    with RunFolder(tmp_path / "a") as folder, pytest.raises(InputError, match=words):
        folder.checkpoints.check(3)


def test_checkpoints_that_are_empty_are_passed_over(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "a")
    (tmp_path / "a" / "checkpoints" / "7" / "arrays").mkdir(parents=True)
    (tmp_path / "a" / "checkpoints" / "8").mkdir()
    (tmp_path / "a" / "checkpoints" / "8" / "record.json").write_text("")
    with RunFolder(tmp_path / "a") as folder:
        assert folder.checkpoints.latest_round() == 2
        assert folder.checkpoints.empty_rounds() == [7, 8]


@pytest.mark.parametrize("line", ["{}", "3", '{"round": "7", "stage": 0}', '{"round": NaN, "stage": 0}', "null"])
def test_a_line_that_is_json_and_no_metrics_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    sentence = r"damaged \(line 1 of metrics.jsonl lacks a usable (object|round)"
    with RunFolder(tmp_path) as folder, pytest.raises(InputError, match=sentence):
        folder.metrics.cut(1)


def test_what_a_kill_left_of_a_checkpoint_is_removed(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_plain(RunConfig())))
    (tmp_path / "checkpoints" / f".7.{'0' * 16}.partial" / "arrays").mkdir(parents=True)
    with RunFolder(tmp_path, RUN) as folder:
        assert folder.checkpoints.latest_round() is None
        assert not any((tmp_path / "checkpoints").iterdir())
