"""How many clients a chunk trains: measured where that pays, within memory, and never beyond the cohort."""

import dataclasses

import jax
import numpy as np
import pytest

from devft_jax.errors import RunError
from devft_jax.federated.round.chunk_size import WORTH, Trial, choose, next_smaller, padding, trial_runs
from devft_jax.federated.sampling import client_keys
from devft_jax.reporting import Progress
from devft_jax.runtime.compiled import CompiledPrograms
from devft_jax.storage.run_folder import RunFolder
from devft_jax.training.parts import build_parts
from devft_jax.training.run import train
from devft_jax.training.trainer import Trainer
from tests.tiny_run import write_run_inputs

QUIET = Progress(quiet=True)


def machine(per_client, *, compile_seconds=1.0, client_bytes=10, fits=10**9):
    """Trials of a machine on which a client costs `per_client(size)` seconds; the pairs that were tried are in `pairs`."""
    pairs = []

    def one(size):
        return Trial(per_client(size), compile_seconds, client_bytes * size)

    def trial(smaller, larger):
        pairs.append((smaller, larger))
        return (one(smaller), one(larger)) if larger <= fits else None

    return trial, pairs


def chosen(trial, *, start=1, most=64, clients=10**6, memory=None, client_seconds=1.0, compile_seconds=1.0):
    first = Trial(client_seconds, compile_seconds, 10 * start)
    return choose(trial, start=start, most=most, clients=clients, first=first, memory=memory)


@pytest.mark.parametrize(("seconds", "runs"), [(0.0, 7), (0.001, 7), (0.3, 4), (1.0, 1), (20.0, 1)])
def test_long_chunks_are_timed_once(seconds, runs):
    assert trial_runs(seconds) == runs


@pytest.mark.parametrize(
    ("clients", "size", "share"), [(8, 4, 1.0), (9, 4, 12 / 9), (9, 8, 16 / 9), (9, 9, 1.0), (2, 8, 4.0)]
)
def test_chunks_that_do_not_divide_a_cohort_are_filled_up(clients, size, share):
    assert padding(clients, size) == share


def test_a_size_that_costs_more_than_was_expected_uses_up_its_time():
    trial, pairs = machine(lambda size: 1.0 if size == 1 else 1000.0, compile_seconds=0.0)
    worth = WORTH * (2 * 4 + 2 * 2)
    assert chosen(trial, clients=worth, compile_seconds=0.0) == 1
    assert pairs == [(1, 4)]


def test_sizes_grow_while_a_client_gets_cheaper():
    trial, pairs = machine(lambda size: max(1 / size, 1 / 16))
    assert chosen(trial) == 16
    assert pairs == [(1, 4), (4, 16), (16, 64), (16, 32)]


def test_a_size_between_two_that_were_tried_is_found():
    trial, pairs = machine(lambda size: 1 / size if size <= 8 else 1.0)
    assert chosen(trial) == 8
    assert pairs == [(1, 4), (4, 16), (4, 8)]


def test_a_gain_within_noise_is_no_reason():
    trial, pairs = machine(lambda size: 0.96 if size > 1 else 1.0)
    assert chosen(trial) == 1
    assert pairs == [(1, 4), (1, 2)]


def test_a_machine_that_gets_faster_as_a_whole_favours_no_size():
    pace = iter(range(1, 100))

    def trial(smaller, larger):
        now = 1 / next(pace)
        return Trial(now, 1.0, 10), Trial(now, 1.0, 10)

    assert chosen(trial) == 1


def test_one_size_that_is_worse_does_not_end_the_search():
    trial, pairs = machine(lambda size: 2.0 if size == 2 else 1 / size)
    assert chosen(trial, most=8) == 8
    assert pairs == [(1, 4), (4, 8)]


@pytest.mark.parametrize(("start", "most", "best"), [(2, 6, 6), (8, 8, 8), (8, 24, 24)])
def test_no_size_goes_beyond_the_cohort(start, most, best):
    trial, pairs = machine(lambda size: 1 / size)
    assert chosen(trial, start=start, most=most) == best
    assert all(larger <= most for _, larger in pairs)


def test_what_cannot_pay_is_not_tried():
    trial, pairs = machine(lambda size: 1 / size)
    worth = WORTH * (1 + 2 * 2)
    assert chosen(trial, clients=worth - 1) == 1
    assert pairs == []
    assert chosen(trial, clients=worth) > 1


def test_all_trials_together_are_bounded():
    trial, pairs = machine(lambda size: 1.0, compile_seconds=100.0)
    first, second = 100 + 2 * 4, 100 + 2 * 2
    assert chosen(trial, clients=WORTH * (first + second) - 1, compile_seconds=100.0) == 1
    assert pairs == [(1, 4)]
    assert chosen(trial, clients=WORTH * (first + second), compile_seconds=100.0) == 1
    assert pairs == [(1, 4), (1, 4), (1, 2)]


def test_memory_bounds_the_size_before_and_after_compilation():
    trial, pairs = machine(lambda size: 1 / size)
    assert chosen(trial, memory=100) == 8  # of 0.8 x 100 bytes
    assert pairs == [(1, 4), (4, 8)]
    trial, pairs = machine(lambda size: 1 / size, fits=4)
    assert chosen(trial) == 4
    assert pairs == [(1, 4), (4, 16), (4, 8)]


@pytest.mark.parametrize(("size", "devices", "smaller"), [(8, 1, 4), (3, 1, 1), (1, 1, None), (8, 8, None), (24, 8, 8)])
def test_the_next_smaller_size_halves_every_devices_clients(size, devices, smaller):
    assert next_smaller(size, devices) == smaller


# ---------------------------------------------------------------------------------------------------
# In a run


@pytest.fixture(scope="module")
def config(tmp_path_factory, word_tokenizer):
    written = write_run_inputs(tmp_path_factory.mktemp("tiny"), word_tokenizer)
    more = {"growth": "end-to-end", "rounds": 2, "clients_per_round": 3, "devices": 1, "checkpoint_every": 1}
    return dataclasses.replace(written, test_data=None, **more)


@pytest.fixture
def room_for(monkeypatch):
    """Makes the device too small for chunks of more than so many clients; gives the sizes that were asked for."""

    def limit(fits, *, from_call=0):
        sizes = []
        original = CompiledPrograms.call

        def call(self, name, function, *arguments):
            if name == "chunk":
                sizes.append(len(arguments[0].clients.shares.weight))
                if sizes[-1] > fits and len(sizes) > from_call:
                    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
            return original(self, name, function, *arguments)

        monkeypatch.setattr(CompiledPrograms, "call", call)
        return sizes

    return limit


def test_out_of_memory_names_the_next_smaller_size(config, tmp_path, room_for):
    room_for(1)
    chosen = dataclasses.replace(config, clients_per_step=3, out=str(tmp_path))
    with pytest.raises(RunError, match="clients_per_step 3 does not fit into memory; run again with clients_per_step 1"):
        train(chosen, progress=QUIET)
    room_for(0)
    with pytest.raises(RunError, match="one client at a time on each device does not fit into memory; lower batch_size"):
        train(dataclasses.replace(chosen, clients_per_step=1), progress=QUIET)


def test_auto_goes_on_with_the_next_smaller_size_and_a_resumed_run_keeps_it(config, tmp_path, room_for, monkeypatch, capfd):
    monkeypatch.setattr("devft_jax.training.parts.resolve_clients_per_step", lambda options, devices: 4)
    sizes = room_for(1)
    run = train(dataclasses.replace(config, out=str(tmp_path)), progress=Progress())
    assert sizes == [3, *[1] * 6]
    assert "3 clients at once do not fit into memory; continuing with 1" in capfd.readouterr().err
    assert run.summary.clients_per_step == 1
    longer = dataclasses.replace(config, rounds=3, out=str(tmp_path))
    assert train(longer, progress=QUIET).summary.clients_per_step == 1
    assert sizes == [3, *[1] * 9]


def test_auto_tries_sizes_after_the_first_round_and_keeps_the_fastest(config, tmp_path, monkeypatch, capfd):
    tried = []

    def trials(self, base, server, bank, cohort, *, sizes, lr, keys, train_rows):
        tried.append(sizes)
        return tuple(Trial(1 / size, 0.0, 1) for size in sizes)

    monkeypatch.setattr("devft_jax.federated.round.cohort.Cohort.trials", trials)
    monkeypatch.setattr("devft_jax.federated.round.chunk_size.WORTH", 0)
    run = train(dataclasses.replace(config, out=str(tmp_path)), progress=Progress())
    assert tried == [(1, 3)]
    assert "3 clients are trained at once from now on: faster than 1" in capfd.readouterr().err
    assert run.summary.clients_per_step == 3
    with RunFolder(tmp_path) as folder:
        assert folder.checkpoints.read_record(1).totals.clients_per_step == 3


def test_a_trial_changes_nothing(config, tmp_path):
    trainer = Trainer(build_parts(dataclasses.replace(config, algorithm="fedsa-lora"), progress=QUIET))
    state = trainer.begin()
    trainer.begin_stage(state, [])
    members = trainer.parts.rounds.members(0)
    keys = {"lr": 0.1, "keys": lambda ids: client_keys(0, np.uint32(0), ids), "train_rows": np.ones(4, bool)}
    found = trainer.parts.cohort.trials(state.base, state.server, state.bank, members, sizes=(1, 2), **keys)
    for trial in found:
        assert trial.client_seconds > 0
        assert trial.compile_seconds > 0
        assert trial.program_bytes > 0
    assert trainer.parts.cohort.clients_per_step == 1
    assert not len(state.bank.view(full=False).trained)
