"""Stored hidden states: what they hold, when they pay, and rounds that start from them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.developmental import LayerMap
from devft_jax.errors import RunError
from devft_jax.federated import prefix as prefix_module
from devft_jax.federated.algorithm import Clients
from devft_jax.federated.algorithms import ALGORITHMS
from devft_jax.federated.local import Passes
from devft_jax.federated.prefix import PrefixCache, Visits, worth_storing
from devft_jax.federated.round.client import LocalTraining
from devft_jax.federated.round.cohort import Cohort
from devft_jax.models.llama import Compute, prefix_states
from devft_jax.models.quantization import quantize_base
from devft_jax.runtime.compiled import CompiledPrograms
from devft_jax.runtime.devices import client_mesh
from devft_jax.training.replay import replay_client
from tests.federated.harness import (
    BASE,
    BATCH,
    BUCKETS,
    EXAMPLES,
    FIVE,
    LONG,
    SEED,
    SGD,
    TWO,
    assemble,
    client,
    keys_of_round,
    run_round,
)
from tests.tiny import CONFIG

BARE = 3
MEMBERS = [*FIVE[:3], client(7, pool=LONG)]
DRAWS = [member.examples for member in MEMBERS]


@pytest.fixture
def make(tmp_path):
    def cache(compute=None, devices=1, rows=6):
        return PrefixCache(
            CONFIG,
            compute or Compute(),
            EXAMPLES,
            layers=BARE,
            rows=rows,
            buckets=BUCKETS,
            mesh=client_mesh(jax.local_devices()[:devices]),
            programs=CompiledPrograms(),
            folder=tmp_path,
        )

    return cache


def expected(examples, compute=None, base=BASE):
    tokens, _ = assemble(examples)
    return prefix_states(CONFIG, base, jnp.asarray(tokens), BARE, compute=compute or Compute()), tokens.shape[-1]


@pytest.mark.parametrize("devices", [1, 2])
def test_it_holds_what_the_lower_layers_make_and_zero_elsewhere(make, devices, tmp_path):
    cache = make(devices=devices)
    rows = cache.fill(BASE, DRAWS)
    distinct = np.unique(np.concatenate([draw.ravel() for draw in DRAWS]))
    assert sum(rows.values()) == len(distinct)
    assert set(rows) == set(EXAMPLES.lengths[distinct].tolist())
    for draw in DRAWS:
        states, length = expected(draw[0])
        index = np.append(draw[0], -1)
        stored = cache.gather(index, length)
        assert stored.shape == (BATCH + 1, length, CONFIG.width)
        for row, state, example in zip(stored, states, draw[0], strict=False):
            count = EXAMPLES.lengths[example]
            np.testing.assert_allclose(row[:count], state[:count], rtol=1e-5, atol=1e-5)
            assert not row[count:].any()
        assert not stored[-1].any()
    # Nothing is run twice, and nothing stays when it is let go.
    assert cache.fill(BASE, DRAWS) == {}
    assert cache.rounds == 2
    cache.close()
    assert list(tmp_path.iterdir()) == []


def test_it_is_of_the_compute_dtype_and_reads_packed_weights(make):
    compute, packed = Compute(dtype="bfloat16"), quantize_base(BASE, "int8")
    cache = make(compute)
    cache.fill(packed, DRAWS)
    states, length = expected(DRAWS[0][0], compute, packed)
    stored = cache.gather(DRAWS[0][0], length)
    assert stored.dtype == jnp.bfloat16
    count = EXAMPLES.lengths[DRAWS[0][0][0]]
    np.testing.assert_allclose(
        stored[0, :count].astype(np.float32), np.asarray(states[0, :count], np.float32), rtol=0.02, atol=0.02
    )


def test_what_was_not_filled_in_is_not_given_as_zeros(make):
    cache = make()
    cache.fill(BASE, DRAWS[:1])
    with pytest.raises(ValueError, match="fill its round first"):
        cache.gather(DRAWS[3][0], 16)


def test_made_again_round_by_round_it_has_the_same_bits(make):
    caches = make(), make()
    for cache in caches:
        for draws in (DRAWS[:2], DRAWS[2:]):
            cache.fill(BASE, draws)
    both = [cache.gather(np.stack(DRAWS), 16) for cache in caches]
    np.testing.assert_array_equal(*both)


def test_a_full_disk_is_one_sentence(make, monkeypatch, tmp_path):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prefix_module.tempfile, "TemporaryFile", full)
    with pytest.raises(RunError, match=f"prefix_cache could not store .*{tmp_path}.*No space left.*prefix_cache off"):
        make()


def test_visits_are_counted_over_draws():
    draws = [np.array([[0, 1], [1, 2]]), np.array([[1, 60]])]
    assert Visits.count(draws, EXAMPLES) == Visits(6, 4, int(EXAMPLES.lengths[[0, 1, 2, 60]].sum()))


def test_auto_asks_for_visits_and_for_room():
    enough = Visits(total=200, distinct=100, tokens=1000)
    choices = {"token_bytes": 64, "chunk_tokens": 100}
    assert worth_storing(enough, **choices)
    assert not worth_storing(dataclasses.replace(enough, distinct=101), **choices)
    assert not worth_storing(dataclasses.replace(enough, tokens=2**27 + 1), **choices)
    assert not worth_storing(enough, token_bytes=64, chunk_tokens=2**24 + 1)


def cohort_of(algorithm, assemble_batches):
    return Cohort(
        LocalTraining(algorithm, CONFIG, Compute(), SGD, Passes(1, BUCKETS)),
        devices=jax.local_devices()[:1],
        clients_per_step=2,
        assemble=assemble_batches,
        programs=CompiledPrograms(),
    )


@pytest.mark.parametrize(
    "name", ["fedit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("c2a", "fedsa-lora", "fedex-lora"))]
)
def test_a_round_from_stored_states_is_the_round_without(make, name):
    options = dataclasses.replace(TWO, dropout=0.25, hyper_rank=4, hyper_width=8, hyper_ungated=True)
    algorithm = ALGORITHMS[name](options)
    clients = Clients(8)
    full = algorithm.init_server(jax.random.key(SEED), CONFIG, clients)
    layer_map = LayerMap.top(CONFIG.layers, CONFIG.layers - BARE)
    server = algorithm.submodel(full, layer_map)
    bank = jax.device_get(algorithm.init_bank(clients, full))
    if jax.tree.leaves(bank):
        bank = jax.device_get(jax.vmap(lambda row: algorithm.submodel_row(row, layer_map))(bank))
    cache = make()
    cache.fill(BASE, DRAWS)

    def with_states(examples):
        tokens, mask = assemble(examples)
        return tokens, mask, cache.gather(examples, tokens.shape[-1])

    learning = np.asarray(layer_map.train)
    results = []
    for batches in (assemble, with_states):
        state, rounds = server, cohort_of(algorithm, batches)
        # In the second round b is no longer zero and a dense correction has its first increment.
        for _ in range(2):
            result = run_round(rounds, state, MEMBERS, bank=bank, train_rows=learning)
            state = result.server
        results.append(result)
    plain, cached = results
    np.testing.assert_allclose(cached.losses, plain.losses, rtol=2e-5)
    assert plain.update_norms.min() > 1e-4
    for new, old in zip(jax.tree.leaves(cached.server), jax.tree.leaves(plain.server), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-3, atol=1e-5)

    member = MEMBERS[3]
    reports = replay_client(
        LocalTraining(algorithm, CONFIG, Compute(), SGD, Passes(1, BUCKETS)),
        base=BASE,
        server=server,
        row=jax.tree.map(lambda leaf: leaf[member.position], bank),
        batches=with_states(member.examples),
        lr=0.3,
        key=keys_of_round(np.array([member.id], np.uint32))[0],
        train_rows=learning,
        mesh=client_mesh(jax.local_devices()[:1]),
    )
    first = run_round(rounds, server, [member], bank=bank, train_rows=learning)
    np.testing.assert_allclose([report.loss for report in reports], first.losses[0], rtol=1e-5)
