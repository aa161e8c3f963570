"""How many clients a chunk trains: from shapes on a CPU, else measured in the rounds, within memory and the cohort."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.errors import RunError
from devft_jax.federated.round.chunk_size import LAYER_FLOPS, WORTH, SizeSearch, Trial, cpu_clients, next_smaller
from devft_jax.reporting import Progress
from devft_jax.runtime.compiled import CompiledPrograms
from devft_jax.training.run import train
from tests.tiny_run import write_run_inputs

QUIET = Progress(quiet=True)


@pytest.mark.parametrize(
    ("participants", "devices", "share", "clients"),
    [
        # Large products: a client on every device.
        (4, 2, 1.0, 2),
        (4, 1, 8.0, 1),
        (1, 1, 1e-3, 1),
        # Small ones: as many as have enough operations together, or all.
        (256, 2, 1 / 16, 32),
        (256, 1, 1 / 16, 16),
        (256, 2, 1e-9, 256),
        # Chunks of almost equal size, so that the last has little padding.
        (20, 2, 1 / 8, 10),
        (17, 2, 1 / 8, 10),
    ],
)
def test_on_a_cpu_a_chunk_has_the_fewest_clients_with_large_products(participants, devices, share, clients):
    assert cpu_clients(participants, devices, share * LAYER_FLOPS) == clients


@given(st.integers(1, 300), st.integers(1, 8), st.floats(1e-4, 10))
def test_chunks_on_a_cpu_have_less_padding_than_one_client_a_device_and_chunk(participants, devices, share):
    size = cpu_clients(participants, devices, share * LAYER_FLOPS)
    chunks = -(-participants // size)
    assert size % devices == 0
    assert chunks * size - participants < chunks * devices


def searched(token_seconds, *, start=1, most=64, seconds_left=1e9, compile_seconds=1.0, memory=None):
    """The sizes of the rounds in which a search goes on, and the size that it ends with."""
    search, sizes, size = SizeSearch(most, memory), [], start
    while size is not None:
        sizes.append(size)
        assert len(sizes) < 20
        size = search.after(Trial(size, token_seconds(size), compile_seconds, 10 * size), seconds_left)
    assert search.start == start
    return sizes, search.best.size


@pytest.mark.parametrize(
    ("token_seconds", "sizes", "best"),
    [
        (lambda size: max(1 / size, 1 / 16), [1, 4, 16, 64, 32], 16),
        # A size between two that were tried.
        (lambda size: 1 / size if size <= 8 else 1.0, [1, 4, 16, 8], 8),
        # A gain within noise.
        (lambda size: 0.96 if size > 1 else 1.0, [1, 4, 2], 1),
        # Two at once are slow, four are not.
        (lambda size: 2.0 if size == 2 else 1 / size, [1, 4, 16, 64], 64),
    ],
)
def test_sizes_grow_while_a_token_gets_cheaper(token_seconds, sizes, best):
    assert searched(token_seconds) == (sizes, best)


@pytest.mark.parametrize(("start", "most", "best"), [(2, 6, 6), (8, 8, 8), (8, 24, 24)])
def test_no_size_goes_beyond_the_cohort(start, most, best):
    sizes, found = searched(lambda size: 1 / size, start=start, most=most)
    assert found == best
    assert max(sizes) <= most


def test_a_size_is_compiled_only_if_the_rest_of_the_run_repays_it():
    assert searched(lambda size: 1 / size, seconds_left=WORTH - 0.1) == ([1], 1)
    assert searched(lambda size: 1 / size, seconds_left=WORTH + 0.1)[1] == 64


def test_memory_bounds_the_size_before_it_is_compiled():
    # 8 clients take 80 bytes, 0.8 of the device's.
    assert searched(lambda size: 1 / size, memory=100) == ([1, 4, 8], 8)


def test_a_size_that_did_not_fit_is_given_up_for_the_best_before_it():
    search = SizeSearch(64, None)
    assert search.before(8) is None
    assert search.after(Trial(8, 1.0, 1.0, 10), 1e9) == 32
    assert search.before(32) == 8
    assert search.before(8) is None


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
    monkeypatch.setattr("devft_jax.training.machine.resolve_clients_per_step", lambda *given: 3)
    sizes = room_for(1)
    run = train(dataclasses.replace(config, out=str(tmp_path)), progress=Progress())
    assert sizes == [3, *[1] * 6]
    assert "3 clients at once do not fit into memory; continuing with 1" in capfd.readouterr().err
    assert run.summary.clients_per_step == 1
    longer = dataclasses.replace(config, rounds=3, out=str(tmp_path))
    assert train(longer, progress=QUIET).summary.clients_per_step == 1
    assert sizes == [3, *[1] * 9]


def test_rounds_try_sizes_and_the_fastest_is_kept(config, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("devft_jax.training.machine.resolve_clients_per_step", lambda *given: 1)
    monkeypatch.setattr("devft_jax.training.machine.SEARCHED_ON", ("cpu",))
    monkeypatch.setattr("devft_jax.federated.round.chunk_size.WORTH", 0)
    # Two clients at once seem fast, three slow.
    after, tried = SizeSearch.after, []

    def measured(self, found, seconds_left):
        tried.append(found.size)
        seconds = {1: 1.0, 2: 0.5, 3: 2.0}[found.size]
        return after(self, dataclasses.replace(found, token_seconds=seconds), seconds_left)

    monkeypatch.setattr(SizeSearch, "after", measured)
    run = train(dataclasses.replace(config, rounds=5, out=str(tmp_path)), progress=Progress())
    assert "2 clients are trained at once from now on: faster than 1" in capfd.readouterr().err
    assert run.summary.clients_per_step == 2
    # Each is tried for a round, and none once the search has ended.
    assert sorted(tried) == [1, 2, 3]
    # Which sizes were tried changes no result by more than rounding.
    other = train(dataclasses.replace(config, rounds=5, clients_per_step=1, out=str(tmp_path / "other")), progress=QUIET)
    np.testing.assert_allclose([row.loss for row in run.history], [row.loss for row in other.history], rtol=1e-4)
