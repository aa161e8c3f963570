"""FLoRA: the stack's product is the mean of the clients' products, for any weights and ranks, and all add the same."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.data import gather_batch
from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithm import Clients
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.flora import flora
from devft_jax.federated.messages import message_bytes
from devft_jax.models.adapter import LoraFactors
from devft_jax.reporting import Progress
from devft_jax.training.run import train
from tests.federated.harness import (
    BASE,
    EXAMPLES,
    SGD,
    aggregated,
    assert_identical,
    client,
    engine,
    init,
    participant,
    plain_gradient,
    run_round,
    trained_messages,
)
from tests.tiny import CONFIG
from tests.tiny_run import write_run_inputs

OPTIONS = MethodConfig(rank=3, alpha=4.5, dropout=0.0, targets=("v", "down"), clients_per_round=3)
MIXED = dataclasses.replace(OPTIONS, client_ranks=(4, 1, 2))
SCALE = 4.5 / 3
ELEMENTS = 4 * (16 + 8 + 24 + 16)
"""Of one direction of both projections in all four layers."""

made = functools.cache(flora)


def rows_of(options, count=3):
    """The first clients' rows."""
    bank = made(options).init_bank(Clients(count), init(made(options)))
    return [jax.tree.map(lambda leaf, where=index: leaf[where], bank) for index in range(count)]


def noisy(seed):
    """Moves every client's factors in its own way."""
    return lambda who, leaf: (
        leaf + jnp.asarray(np.random.default_rng([seed, who, leaf.size]).normal(size=leaf.shape), "float32")
    )


def products(ups):
    """Every client's a b, f64."""
    factors = [getattr(up, "lora", up) for up in ups]
    return [
        {name: np.asarray(each.a, np.float64) @ np.asarray(each.b, np.float64) for name, each in lora.items()}
        for lora in factors
    ]


def total(server):
    return made(OPTIONS).view(server).delta


@settings(max_examples=8)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 3.0, 11.0]), min_size=3, max_size=3),
    mixed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_round_adds_the_mean_of_the_scaled_products(weights, mixed, seed):
    options = MIXED if mixed else OPTIONS
    algorithm, rows = made(options), rows_of(options)
    server, expected = init(algorithm), {"v": 0.0, "down": 0.0}
    for index in range(2):
        ups, _ = trained_messages(algorithm, server, rows, move=noisy(seed + index))
        server, metrics = aggregated(algorithm, server, ups, weights)
        added = {
            name: SCALE * np.average([product[name] for product in products(ups)], axis=0, weights=weights)
            for name in ("v", "down")
        }
        expected = {name: leaf + added[name] for name, leaf in expected.items()}
        for name, leaf in total(server).items():
            np.testing.assert_allclose(leaf, expected[name], atol=1e-4)
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in added.values()))
    assert metrics["update_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_clients_add_what_the_server_adds(dtype):
    algorithm = made(dataclasses.replace(MIXED, message_dtype=dtype))
    server = init(algorithm)
    for seed in (1, 2):
        ups, _ = trained_messages(algorithm, server, rows_of(MIXED), move=noisy(seed))
        server, _ = aggregated(algorithm, server, ups, [3.0, 11.0, 0.5])
        # The next round begins at the model that this one ended with: b is zero and the correction the same.
        start, frozen = algorithm.start(participant(algorithm, server, rows_of(MIXED)[0]))
        own = algorithm.adapter(start, frozen)
        assert_identical(own.delta, algorithm.view(server).delta)
        assert not any(np.any(factors.b) for factors in own.lora.values())
        assert own.scale == SCALE
    assert {leaf.dtype for leaf in jax.tree.leaves(server.correction.increment)} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in own.delta.values()} == {jnp.dtype("float32")}


def test_every_client_draws_its_own_a_of_its_own_rank():
    algorithm, rows = made(MIXED), rows_of(MIXED)
    server = init(algorithm)
    starts = [algorithm.start(participant(algorithm, server, row, seed=index))[0] for index, row in enumerate(rows)]
    for lora, rank in zip(starts, (4, 1, 2), strict=True):
        for name, factors in lora.items():
            a, fan_in = np.asarray(factors.a), CONFIG.projection_shape(name)[0]
            assert np.all(a[..., :rank])
            assert not np.any(a[..., rank:])
            assert np.abs(a).max() <= fan_in**-0.5
    assert np.all(starts[0]["v"].a[..., 0] != starts[1]["v"].a[..., 0])
    assert np.all(starts[0]["v"].a[0, :, 0] != starts[0]["v"].a[1, :, 0])


def test_ranks_go_to_the_clients_in_turn():
    bank = made(MIXED).init_bank(Clients(5), init(made(MIXED)))
    assert bank["rank"].tolist() == [4, 1, 2, 4, 1]
    alike = flora(dataclasses.replace(OPTIONS, client_ranks=(2, 2)))
    assert alike.init_bank(Clients(5), init(alike)) == {}
    assert alike.start(participant(alike, init(alike)))[0]["v"].a.shape == (4, 16, 2)


def test_padding_gets_no_gradient():
    rng = np.random.default_rng(0)

    def padded(*shape, axis):
        leaf = rng.normal(size=shape)
        np.moveaxis(leaf, axis, 0)[2:] = 0
        return jnp.asarray(leaf, jnp.float32)

    lora = {"v": LoraFactors(a=padded(4, 16, 3, axis=2), b=padded(4, 3, 8, axis=1))}
    tokens, mask = gather_batch(EXAMPLES, np.array([0, 1]), 8)
    _, gradient = plain_gradient(OPTIONS, lora, BASE, tokens, mask, jax.random.key(0))
    assert np.all(gradient["v"].a[..., :2].any(axis=(0, 1)))
    assert not np.any(gradient["v"].a[..., 2:])
    assert not np.any(gradient["v"].b[:, 2:])


def test_a_round_counts_the_directions_that_travel():
    algorithm = made(MIXED)
    bank = jax.device_get(algorithm.init_bank(Clients(5), init(algorithm)))
    members = [client(3), client(1), client(2)]
    first = run_round(engine(algorithm, SGD, 1, 2), init(algorithm), members, bank=bank)
    # Nobody has stacked anything yet; a message with padding says its rank in four bytes.
    assert first.bytes_down == 3 * 4
    assert first.bytes_up == 4 * (4 + 1 + 2) * ELEMENTS + 3 * 4
    assert int(first.server.rank) == 7
    second = run_round(engine(algorithm, SGD, 1, 2), first.server, members[:2], bank=bank)
    assert second.bytes_down == 2 * (4 * 7 * ELEMENTS + 4)
    # Of two participants of a round planned for three, two are stacked.
    assert int(second.server.rank) == 5


def test_clients_of_one_rank_send_bare_factors():
    algorithm = made(OPTIONS)
    ups, _ = trained_messages(algorithm, init(algorithm), [{}] * 3, move=noisy(1))
    assert message_bytes(ups[0]) == 4 * 3 * ELEMENTS
    server, _ = aggregated(algorithm, init(algorithm), ups, [1.0, 0.0, 2.0])
    # Who broke down is not stacked.
    assert int(server.rank) == 6
    for name, leaf in total(server).items():
        wanted = SCALE * (products(ups)[0][name] + 2 * products(ups)[2][name]) / 3
        np.testing.assert_allclose(leaf, wanted, atol=1e-5)


def test_every_layer_of_a_group_gets_what_the_stage_added():
    algorithm = made(OPTIONS)
    server = init(algorithm)
    ups, _ = trained_messages(algorithm, server, [{}] * 3, move=noisy(1))
    full, _ = aggregated(algorithm, server, ups, [1.0, 2.0, 3.0])
    matrix = np.array([[0.8, 0.1, 0.1, 0], [0, 0, 0, 1]], np.float32)
    layers = LayerMap(jnp.asarray(matrix), jnp.array([0, 0, 0, 1], jnp.int32), jnp.ones(2, bool))
    stage = algorithm.submodel(full, layers)
    for name, leaf in total(stage).items():
        np.testing.assert_allclose(leaf, np.tensordot(matrix, total(full)[name], 1), atol=1e-5)
    assert int(stage.rank) == 0
    ups, _ = trained_messages(algorithm, stage, [{}] * 3, move=noisy(2))
    ended, _ = aggregated(algorithm, stage, ups, [1.0, 2.0, 3.0])
    after = algorithm.transfer(full, ended, layers, "copy")
    for name, leaf in total(after).items():
        change = np.asarray(total(ended)[name]) - np.asarray(total(stage)[name])
        np.testing.assert_allclose(leaf, np.asarray(total(full)[name]) + change[[0, 0, 0, 1]], atol=1e-5)
    # The last stack has not been sent: it is the first message of a stage of all layers.
    last = algorithm.submodel(after, LayerMap.identity(4))
    assert message_bytes(participant(algorithm, last).down, [int(last.rank)]) == 4 * 9 * ELEMENTS + 4


def test_a_run_of_mixed_ranks_owes_absentees_their_stacks_and_goes_on_bit_for_bit(tmp_path, word_tokenizer):
    config = dataclasses.replace(
        write_run_inputs(tmp_path, word_tokenizer),
        algorithm="flora",
        growth="end-to-end",
        capacities=None,
        rounds=3,
        devices=1,
        checkpoint_every=1,
        client_ranks=(4, 2, 1),
        message_dtype="bfloat16",
        out=str(tmp_path / "run"),
    )
    run = train(config, progress=Progress(quiet=True))
    summary = run.summary
    assert summary.final_loss < summary.base_loss
    direction = 2 * 4 * (16 + 16 + 16 + 8)
    factors = summary.bytes_up - 6 * 4
    assert factors % direction == 0
    assert 3 * (2 + 1) <= factors // direction <= 3 * (4 + 2)
    assert summary.bytes_missed > 0
    shutil.rmtree(run.folder / "checkpoints" / "3")
    again = train(config, progress=Progress(quiet=True))
    assert again.summary.resumed_after == [2]
    assert_identical(again.adapter, run.adapter)
