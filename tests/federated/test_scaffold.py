"""SCAFFOLD: steps corrected by controls, controls renewed by option II, and what both sides keep of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from devft_jax.accounting.communication import message_elements, round_messages
from devft_jax.data import gather_batch
from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithm import Clients, Share
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.scaffold import Server, scaffold
from devft_jax.federated.options import OptimizerOptions
from tests.federated.harness import (
    BASE,
    EXAMPLES,
    RATE,
    RESERVED,
    SEVEN,
    TWO,
    aggregated,
    assert_close,
    assert_identical,
    client,
    engine,
    fedit_with,
    init,
    keys_of_round,
    largest_change,
    participant,
    plain_gradient,
    plain_round,
    plain_sgd,
    poisoned_base,
    run_round,
    server_with,
    weighted_mean,
)
from tests.federated.test_fedit import LLAMA2_7B, LLAMA2_13B, LLAMA31_8B
from tests.tiny import random_adapter

PLAIN = OptimizerOptions(optimizer="sgd", clip_norm=0.0)
ADAMW = OptimizerOptions(optimizer="adamw")
POPULATION = 4
ALL = [client(position) for position in range(POPULATION)]

made = functools.cache(lambda options=TWO: scaffold(options))


def random_lora(seed, options=TWO):
    return random_adapter(options, seed=seed).lora


def mean_of(trees):
    return weighted_mean(trees, [1.0] * len(trees))


def in_training(options=TWO, clients=POPULATION):
    """A server and a bank in the middle of training, whose control is the mean of the clients'."""
    rows = [jax.tree.map(lambda leaf: 0.1 * leaf, random_lora(20 + index, options)) for index in range(clients)]
    control = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), mean_of(rows))
    server = Server(adapter=server_with(options), control=control, clients=clients)
    return server, jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def row_of(bank, position):
    return jax.tree.map(lambda leaf: leaf[position], bank)


def test_the_first_round_is_fedits_and_controls_begin_at_zero():
    algorithm = made()
    server = init(algorithm, clients=POPULATION)
    assert server.clients == POPULATION
    bank = jax.device_get(algorithm.init_bank(Clients(POPULATION), server))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((server.control, bank)))
    server = server.replace(adapter=server_with())
    found = run_round(engine(algorithm), server, ALL[:3], bank=bank)
    wanted, losses = plain_round(ALL[:3], server_with().lora, plain_sgd())
    assert_close(found.server.adapter.lora, wanted)
    np.testing.assert_allclose(found.losses, losses, atol=1e-5)
    # Twice FedIT's messages each way.
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(server_with().lora))
    assert found.bytes_up == found.bytes_down == 3 * 2 * size


def plain_scaffold(member, lora, control, own):
    """A client's round as the authors write it, with plain SGD: (x_i, c_i+)."""
    key = keys_of_round(np.array([member.id], np.uint32))[0]
    start = lora
    for step, examples in enumerate(member.examples):
        tokens, mask = gather_batch(EXAMPLES, examples, int(EXAMPLES.lengths[member.examples].max()))
        _, gradient = plain_gradient(TWO, lora, BASE, tokens, mask, jax.random.fold_in(key, step))
        lora = jax.tree.map(lambda x, g, c, ci: x - RATE * (g - ci + c), lora, gradient, control, own)
    length = len(member.examples) * RATE
    renewed = jax.tree.map(lambda ci, c, x, xi: ci - c + (x - xi) / length, own, control, start, lora)
    return lora, renewed


def test_a_round_of_plain_sgd_is_the_authors():
    server, bank = in_training()
    members = [ALL[2], ALL[0]]
    found = run_round(engine(made(), PLAIN), server, members, bank=bank)
    rows = [row_of(bank, member.position) for member in members]
    pairs = [
        plain_scaffold(member, server.adapter.lora, server.control, row) for member, row in zip(members, rows, strict=True)
    ]
    trained, renewed = zip(*pairs, strict=True)
    assert_close(found.server.adapter.lora, weighted_mean(trained, [member.weight for member in members]))
    for index, row in enumerate(renewed):
        assert_close(row_of(found.bank_rows, index), row)
    changes = [optax.tree.sub(new, old) for new, old in zip(renewed, rows, strict=True)]
    # Over all four clients, of whom two have taken part, and whatever their examples.
    wanted = jax.tree.map(lambda c, one, two: c + (one + two) / POPULATION, server.control, *changes)
    assert_close(found.server.control, wanted)
    assert found.metrics["control_norm"] == pytest.approx(float(optax.tree.norm(wanted)), rel=1e-4)


@pytest.mark.parametrize("optimizer", [PLAIN, ADAMW], ids=["sgd", "adamw"])
def test_the_control_stays_the_mean_of_the_clients(optimizer):
    server, bank = in_training()
    found = run_round(engine(made(), optimizer), server, ALL, bank=bank, lr=0.05)
    assert_close(found.server.control, mean_of([row_of(found.bank_rows, index) for index in range(POPULATION)]), atol=1e-4)
    assert largest_change(found.server.control, server.control) > 1e-2


@pytest.mark.parametrize(("optimizer", "expected"), [(PLAIN, "gradient"), (ADAMW, "sign")], ids=["sgd", "adamw"])
def test_after_one_step_a_clients_control_is_the_optimisers_direction(optimizer, expected):
    server, bank = in_training()
    member = client(1, steps=1)
    found = run_round(engine(made(), optimizer), server, [member], bank=bank, lr=0.05)
    key = jax.random.fold_in(keys_of_round(np.array([member.id], np.uint32))[0], 0)
    tokens, mask = gather_batch(EXAMPLES, member.examples[0], int(EXAMPLES.lengths[member.examples].max()))
    _, gradient = plain_gradient(TWO, server.adapter.lora, BASE, tokens, mask, key)
    row = row_of(found.bank_rows, 0)
    if expected == "gradient":
        assert_close(row, gradient, atol=1e-4)
    else:
        # AdamW's first step goes by the sign of every entry that is not tiny.
        for found_leaf, leaf in zip(jax.tree.leaves(row), jax.tree.leaves(gradient), strict=True):
            large = np.abs(leaf) > 1e-3
            np.testing.assert_allclose(found_leaf[large], np.sign(leaf)[large], atol=1e-2)


def test_at_rate_zero_nothing_moves():
    server, bank = in_training()
    found = run_round(engine(made(), ADAMW), server, ALL, bank=bank, lr=0.0)
    assert found.finite.all()
    assert_close(found.server.adapter, server.adapter, atol=1e-6)
    assert_identical(found.server.control, server.control)
    assert_identical(found.bank_rows, bank)


def test_a_broken_client_keeps_its_control_and_adds_nothing():
    server, bank = in_training()
    broken = client(3, pool=RESERVED)
    found = run_round(engine(made(), PLAIN), server, [ALL[0], broken], bank=bank, base=poisoned_base())
    alone = run_round(engine(made(), PLAIN), server, [ALL[0]], bank=bank)
    assert found.finite.tolist() == [True, False]
    assert_identical(row_of(found.bank_rows, 1), row_of(bank, 3))
    assert_close(found.server, alone.server)


def test_layers_that_do_not_learn_keep_their_zero_controls():
    algorithm = made()
    server = init(algorithm, clients=POPULATION).replace(adapter=server_with())
    bank = jax.device_get(algorithm.init_bank(Clients(POPULATION), server))
    rows = np.array([True, False, False, True])
    found = run_round(engine(algorithm, PLAIN), server, ALL[:2], bank=bank, train_rows=rows)
    for leaf in jax.tree.leaves(found.server.control):
        assert not np.any(leaf[~rows])
        assert np.any(leaf[rows])
    for new, old in zip(*map(jax.tree.leaves, (found.server.adapter.lora, server_with().lora)), strict=True):
        assert_close(new[~rows], old[~rows], atol=1e-6)


def test_rounded_messages_keep_both_sides_together():
    options = dataclasses.replace(SEVEN, message_dtype="bfloat16")
    algorithm = scaffold(options)
    server, bank = in_training(options, clients=3)
    ups, rows = [], []
    for position in range(3):
        at_start = participant(algorithm, server, row_of(bank, position))
        train, _ = algorithm.start(at_start)
        assert {leaf.dtype for leaf in jax.tree.leaves(train)} == {jnp.dtype("float32")}
        up, row = algorithm.finish(at_start, jax.tree.map(lambda leaf, who=position: leaf + 0.01 * (who + 1), train))
        assert {leaf.dtype for leaf in jax.tree.leaves((at_start.down, up))} == {jnp.dtype("bfloat16")}
        ups.append(up)
        rows.append(row)
    after, _ = aggregated(algorithm, server, ups, [3.0, 1.0, 9.0])
    assert_close(after.control, mean_of(rows), atol=1e-6)
    sums = algorithm.contribution(ups[0], Share(jnp.float32(3.0), jnp.int32(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(sums)} == {jnp.dtype("float32")}


def test_controls_begin_every_stage_at_zero():
    algorithm = made()
    full = init(algorithm, clients=POPULATION).replace(adapter=server_with())
    stage, _ = in_training()
    layers = LayerMap(
        fuse=jnp.array([[0.9, 0.1, 0, 0], [0, 0, 0.5, 0.5]], jnp.float32), assign=jnp.array([0, 0, 1, 1], jnp.int32)
    )
    entered = algorithm.submodel(stage, layers)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(entered.control))
    assert jax.tree.map(jnp.shape, entered.control) == jax.tree.map(jnp.shape, entered.adapter.lora)
    row = algorithm.submodel_row(row_of(in_training()[1], 0), layers)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(row))
    assert jax.tree.map(jnp.shape, row) == jax.tree.map(jnp.shape, entered.control)
    moved = jax.tree.map(lambda leaf: leaf + 1, entered)
    back = algorithm.transfer(full, moved, layers, "copy")
    assert_identical(back.control, full.control)
    assert largest_change(back.adapter.lora, full.adapter.lora) > 0.5
    zero = jax.tree.map(jnp.zeros_like, full.control)
    assert_identical(algorithm.transfer_row(zero, moved.control, layers, "copy"), zero)


@pytest.mark.parametrize("model", [LLAMA2_7B, LLAMA31_8B, LLAMA2_13B], ids=["llama2-7b", "llama3.1-8b", "llama2-13b"])
def test_bytes_of_the_papers_models(model):
    options = MethodConfig(rank=32, alpha=64.0, targets=("q", "v"), message_dtype="bfloat16")
    for layers in (model.layers, model.layers // 4):
        ours, fedits = (round_messages(make, model, layers) for make in (scaffold(options), fedit_with(options, "bfloat16")))
        elements = message_elements(fedits.up)
        assert ours.bytes_up == ours.bytes_down == 2 * 2 * elements
