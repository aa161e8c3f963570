"""Runs that several processes train together, on loopback: the bits of one process, and how all of them end together."""

import dataclasses
import json
import signal
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from devft_jax.reporting import Progress
from devft_jax.training.run import train
from tests.several_processes import MAIN, assert_equal_runs, finish, rows_of, start, together, together_in_turn
from tests.tiny_run import write_run_inputs

SECONDS = 15
"""Within which all processes end."""


@pytest.fixture(scope="module")
def config(tmp_path_factory, word_tokenizer):
    """DevFT in two stages; three clients of a round on two devices, so that a chunk is not full."""
    inputs = write_run_inputs(tmp_path_factory.mktemp("several"), word_tokenizer)
    return dataclasses.replace(
        inputs, capacities=(2, 4), rounds=4, clients_per_round=3, clients_per_step=2, devices=1, evaluate_every=1
    )


def kinds(config):
    """No rows, rows that move between processes, a slot of the sums for every participant, devices of which some are late
    or lost, in rounds and with a buffer, and clients with different layers, drawn or by their stage."""
    classes = {"capacities": None, "class_layers": (2, 4), "class_shares": (0.5, 0.5), "clients_per_step": "auto"}
    fleet = {"fleet": "phone=2,workstation=1", "growth": "end-to-end", "capacities": None}
    return {
        "fedit": config,
        "scaffold": dataclasses.replace(config, algorithm="scaffold"),
        "flora": dataclasses.replace(config, algorithm="flora", growth="end-to-end", capacities=None, rounds=2),
        "fleet": dataclasses.replace(config, algorithm="scaffold", over_selection=1.5, **fleet),
        "buffered": dataclasses.replace(
            config,
            **{**fleet, "fleet": "phone=1,single-board=1"},
            aggregation="buffered",
            concurrency=config.clients_per_round,
            clients_per_round=config.clients_per_round - 1,
        ),
        "fedra": dataclasses.replace(config, growth="fedra", **classes),
        "by-tier": dataclasses.replace(config, by_tier=True, distil_steps=2, probe_data=config.test_data),
    }


@pytest.fixture(scope="module")
def two(config, tmp_path_factory):
    """The folders of these runs, trained by two processes."""
    folder = tmp_path_factory.mktemp("two")
    runs = kinds(config)
    folders = {name: folder / name for name in runs}
    together_in_turn(list(runs.values()), list(folders.values()), 2)
    return folders


def alone(config, folder, devices):
    train(dataclasses.replace(config, out=str(folder), devices=devices), progress=Progress(quiet=True))
    return folder


def assert_equal_rows(folder, other, round_index):
    mine, theirs = rows_of(folder, round_index), rows_of(other, round_index)
    assert mine
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("name", ["fedit", "scaffold", "flora", "fleet", "buffered", "fedra", "by-tier"])
def test_two_processes_give_the_bits_of_one_with_two_devices(config, two, tmp_path, name):
    one = alone(kinds(config)[name], tmp_path / "one", 2)
    assert_equal_runs(two[name], one)
    assert (two[name] / "report.html").exists()
    if name == "buffered":
        rows = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
        assert any(max(row["simulated"]["staleness"]) for row in rows)
    if name in ("scaffold", "fleet"):
        assert_equal_rows(two[name], one, 4)
        assert len(list((two[name] / "checkpoints" / "4" / "rows").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices"), [(2, 2), (4, 1)])
def test_four_devices_in_two_or_four_processes_give_the_bits_of_one(config, tmp_path, count, devices):
    wide = dataclasses.replace(more_clients(config), clients_per_step=4, devices=devices)
    runs = kinds(wide)
    folders = {name: tmp_path / name for name in runs}
    together_in_turn(list(runs.values()), list(folders.values()), count)
    for name, run in runs.items():
        assert_equal_runs(folders[name], alone(run, tmp_path / f"{name}-one", 4))


def more_clients(config):
    one_file = str(Path(config.model).parent / "client_0.json")
    return dataclasses.replace(config, data=one_file, partition="iid", clients=6, clients_per_round=5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scaffold", "buffered"])
def test_a_run_of_four_processes_is_continued_by_two_and_by_one(config, tmp_path, name):
    run = dataclasses.replace(kinds(more_clients(config))[name], clients_per_step=4)
    together(run, tmp_path / "run", 4)
    one = alone(run, tmp_path / "one", 4)
    # As many devices in all, so that the clients are divided alike.
    for count, devices, rounds in ((2, 2, 6), (1, 4, 7)):
        longer = dataclasses.replace(run, rounds=rounds, devices=devices)
        if count > 1:
            together(longer, tmp_path / "run", count)
        else:
            alone(longer, tmp_path / "run", devices)
        assert_equal_runs(tmp_path / "run", alone(longer, one, 4))
        if name == "scaffold":
            assert_equal_rows(tmp_path / "run", one, rounds)


IN_ROUND = textwrap.dedent(
    """
    import os, signal
    import devft_jax.training.trainer as trainer
    whole = trainer.run_round
    def changed(parts, state):
        if state.round == ROUND:
            ACT
        return whole(parts, state)
    trainer.run_round = changed
    """
)


def acting(round_index, act):
    """A command that acts before a round."""
    return f"{IN_ROUND.replace('ROUND', str(round_index)).replace('ACT', act)}\n{MAIN}"


def saved_round(folder):
    return max(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdecimal())


def ended_in_time(config, folder, **how):
    """Exit codes and last words of two processes, which end soon after the first of them."""
    started = start(config, folder, 2, **how)
    deadline = time.monotonic() + 240
    while all(process.poll() is None for process in started) and time.monotonic() < deadline:
        time.sleep(0.05)
    began = time.monotonic()
    found = finish(started, SECONDS)
    assert time.monotonic() - began < SECONDS
    return found


def test_a_stop_request_to_one_ends_the_round_in_all_and_the_run_is_resumed(config, two, tmp_path):
    folder = tmp_path / "run"
    found = ended_in_time(config, folder, scripts={1: acting(2, "os.kill(os.getpid(), signal.SIGTERM)")})
    assert [code for code, _ in found] == [128 + signal.SIGTERM] * 2
    assert "stopped after round 3 of 4" in found[0][1]
    assert saved_round(folder) == 3
    said = together(config, folder, 2)
    assert f"resuming {folder} after round 3" in said[0]
    assert "round" not in said[1]
    assert_equal_runs(folder, two["fedit"])


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_the_death_of_one_ends_the_other_which_names_it(config, two, tmp_path, killed):
    folder = tmp_path / "run"
    found = ended_in_time(config, folder, scripts={killed: acting(2, "os.kill(os.getpid(), signal.SIGKILL)")})
    code, said = found[1 - killed]
    assert code == 1
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"devft: process {killed} of 2 (")
    assert "was killed or cannot be reached; everything saved before is complete" in last
    assert saved_round(folder) == 2
    together(config, folder, 2)
    assert_equal_runs(folder, two["fedit"])


@pytest.mark.slow
@pytest.mark.parametrize("broken", [0, 1])
def test_an_error_in_one_ends_the_other_which_names_it(config, two, tmp_path, broken):
    folder = tmp_path / "run"
    found = ended_in_time(config, folder, scripts={broken: acting(2, "raise OSError('the disk of this host is gone')")})
    assert [code for code, _ in found] == [1, 1]
    assert "the disk of this host is gone" in found[broken][1]
    other = found[1 - broken][1].strip().splitlines()[-1]
    assert other.startswith(f"devft: process {broken} of 2 (")
    assert "has ended: OSError (the disk of this host is gone)" in other
    assert saved_round(folder) == 2
    together(config, folder, 2)
    assert_equal_runs(folder, two["fedit"])


def test_processes_of_different_configurations_are_refused(config, tmp_path):
    found = ended_in_time(config, tmp_path / "run", own={1: ["--seed", "3"]})
    assert [code for code, _ in found] == [2, 2]
    for _, said in found:
        assert "seed is 3 in process 1 of 2 and 0 in process 0; start the same command in every process." in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "fedsa-lora"}, "algorithm fedsa-lora, in which every client has its own model, cannot be used by 2"),
        ({"clients_per_round": 1}, "a round has 1 participant(s) for 2 processes"),
        ({"prefix_cache": "on", "growth": "top-grow"}, "prefix_cache on cannot be used by 2 processes yet"),
        ({"evaluate_tasks": ("microtasks",)}, "evaluate_tasks cannot be used by 2 processes yet"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(config, tmp_path, changes, message):
    found = ended_in_time(dataclasses.replace(config, **changes), tmp_path / "run")
    assert [code for code, _ in found] == [2, 2]
    assert all(message in said for _, said in found)


@pytest.mark.slow
def test_processes_with_other_data_are_refused(config, tmp_path):
    folder = tmp_path / "run"
    act = "import devft_jax.training.together as t; t.data_fingerprint = lambda data: 'other'"
    script = f"{act}\n{MAIN}"
    found = ended_in_time(config, folder, scripts={1: script})
    assert [code for code, _ in found] == [2, 2]
    assert all("data is 'other' in process 1 of 2 and '" in said for _, said in found)


def test_a_process_that_never_comes_is_reported_with_the_address(config, tmp_path):
    [process, missing] = start(config, tmp_path / "run", 2, patience=2)
    missing.kill()
    [(code, said)] = finish([process], 60)
    missing.communicate()
    assert code == 2
    assert "not all processes have joined within 2 s: this one as process 0 of 2 tried 127.0.0.1:" in said
