"""FedRot-LoRA: rotations that change no product, the alternation of what they align, and how far they go."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.algorithms.fedrot_lora import fedrot_lora, nearest_rotation, towards
from devft_jax.federated.messages import message_bytes
from devft_jax.models.adapter import LoraFactors
from tests.federated.harness import (
    FIVE,
    SGD,
    aggregated,
    assert_close,
    assert_identical,
    changed_to,
    engine,
    init,
    largest_change,
    participant,
    run_round,
    trained_messages,
)
from tests.tiny import random_adapter

OPTIONS = MethodConfig(rank=3, alpha=4.5, dropout=0.0, targets=("v", "down"), rotation=0.5)

made = functools.cache(fedrot_lora)


def factors_of(seed):
    return random_adapter(OPTIONS, seed=seed).lora["v"]


def rotation_matrices(seed, layers=4, size=3):
    """Random rotations, determinant +1."""
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(layers, size, size)))[0]
    q[..., 0] *= np.linalg.det(q)[:, None]
    return q


def rotated_by(factors, q):
    return LoraFactors(
        a=jnp.asarray(np.asarray(factors.a) @ q, jnp.float32),
        b=jnp.asarray(np.swapaxes(q, 1, 2) @ np.asarray(factors.b), jnp.float32),
    )


def product(factors):
    return np.asarray(factors.a, np.float64) @ np.asarray(factors.b, np.float64)


def server_at(age, seed=1):
    server = init(made(OPTIONS))
    return server.replace(adapter=random_adapter(OPTIONS, seed=seed), age=jnp.int32(age))


@settings(max_examples=15)
@given(seed=st.integers(0, 999), age=st.integers(0, 3), share=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_what_is_sent_has_the_product_that_was_trained(seed, age, share):
    trained = factors_of(seed)
    found = towards(trained, factors_of(seed + 1), jnp.int32(age), share)
    np.testing.assert_allclose(product(found), product(trained), atol=1e-5)
    # Q from a = a Q, whose columns are independent.
    q = np.linalg.lstsq(np.asarray(trained.a[0], np.float64), np.asarray(found.a[0], np.float64), rcond=None)[0]
    np.testing.assert_allclose(q @ q.T, np.eye(3), atol=1e-4)
    assert np.linalg.det(q) == pytest.approx(1, abs=1e-4)
    if share == 0:
        np.testing.assert_allclose(found.a, trained.a, atol=1e-5)


@pytest.mark.parametrize(("age", "factor"), [(1, "a"), (2, "b"), (3, "a"), (4, "b")])
def test_odd_rounds_bring_a_and_even_ones_b_closest_to_the_reference(age, factor):
    compared = 0
    for seed in range(3):
        trained, reference = factors_of(seed), factors_of(seed + 10)
        found = towards(trained, reference, jnp.int32(age), 1.0)
        for layer in range(4):
            target, own, sent = (
                np.asarray(getattr(each, factor)[layer], np.float64) for each in (reference, trained, found)
            )
            if factor == "b":
                target, own, sent = target.T, own.T, sent.T
            best, _ = scipy.linalg.orthogonal_procrustes(own, target)
            # No rotation is nearest to a reflection, whose singular values are all alike.
            if np.linalg.det(best) > 0:
                np.testing.assert_allclose(sent, own @ best, atol=1e-4)
                compared += 1
    assert compared > 2


@pytest.mark.parametrize("age", [1, 2])
def test_rotated_copies_of_one_client_aggregate_exactly(age):
    algorithm = made(dataclasses.replace(OPTIONS, rotation=1.0))
    server = server_at(age)
    ups = []
    for seed in range(3):
        copies = {name: rotated_by(each, rotation_matrices(seed)) for name, each in server.adapter.lora.items()}
        ups.append(algorithm.finish(participant(algorithm, server), copies)[0])
        assert largest_change(ups[-1], optax.tree.zeros_like(ups[-1])) < 1e-4
    after, metrics = aggregated(algorithm, server, ups, [3.0, 11.0, 0.5])
    assert_close(after.adapter.lora, server.adapter.lora, atol=1e-4)
    assert metrics["aggregation_error"] < 1e-3
    # Unturned they cancel each other.
    averaging = fedit(OPTIONS)
    unturned = [
        {name: rotated_by(each, rotation_matrices(seed)) for name, each in server.adapter.lora.items()} for seed in range(3)
    ]
    unturned = changed_to(unturned, server.adapter.lora)
    assert aggregated(averaging, server.adapter, unturned, [3.0, 11.0, 0.5])[1]["aggregation_error"] > 0.1


def test_lambda_turns_a_part_of_the_way():
    angle = 1.2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    for share in (0.0, 0.25, 0.5, 1.0):
        found = np.asarray(nearest_rotation(jnp.asarray((1 - share) * np.eye(2) + share * turn, jnp.float32)))
        wanted = np.arctan2(share * np.sin(angle), 1 - share + share * np.cos(angle))
        assert np.arctan2(found[1, 0], found[0, 0]) == pytest.approx(wanted, abs=1e-5)


def test_a_reflection_becomes_a_rotation():
    found = np.asarray(nearest_rotation(jnp.diag(jnp.array([3.0, 2.0, -0.5]))))
    np.testing.assert_allclose(found, np.eye(3), atol=1e-6)


def test_without_rotation_it_is_fedit():
    algorithm, averaging = made(dataclasses.replace(OPTIONS, rotation=0.0)), fedit(OPTIONS)
    server = server_at(1)
    found = run_round(engine(algorithm, SGD, 1, 5), server, FIVE)
    wanted = run_round(engine(averaging, SGD, 1, 5), server.adapter, FIVE)
    assert_close(found.server.adapter, wanted.server, atol=1e-5)
    assert (found.bytes_up, found.bytes_down) == (wanted.bytes_up, wanted.bytes_down)


def test_a_first_round_has_nothing_to_turn_to():
    algorithm = made(dataclasses.replace(OPTIONS, rotation=1.0))
    server = init(algorithm)
    ups, _ = trained_messages(
        algorithm, server, [{}], move=lambda who, leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape)
    )
    train, _ = algorithm.start(participant(algorithm, server))
    moved = jax.tree.map(lambda leaf: 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), train)
    assert_close(ups[0], moved, atol=1e-6)


def test_rounds_are_counted_from_the_beginning_of_a_stage():
    algorithm = made(OPTIONS)
    server = server_at(0)
    ups, _ = trained_messages(algorithm, server, [{}], move=lambda who, leaf: leaf)
    for _ in range(3):
        server, _ = aggregated(algorithm, server, ups, [1.0])
    assert int(algorithm.known(server)["age"]) == 3
    identity = LayerMap.identity(4)
    full = algorithm.transfer(server_at(0), server, identity, "copy")
    assert_identical(full.adapter, server.adapter)
    assert int(algorithm.submodel(full, identity).age) == 0
    # It is no part of a message.
    assert message_bytes(participant(algorithm, server).down) == message_bytes(server.adapter.lora)


def as_published(matrix, share):
    """R_lambda of one a_i^T a_ref as the authors' released code has it, in numpy: the sign first, then the mixture."""
    left, _, right = np.linalg.svd(matrix)
    if np.linalg.det(left @ right) < 0:
        right[-1] *= -1
    mixed, _, with_ = np.linalg.svd((1 - share) * np.eye(len(matrix)) + share * left @ right)
    return mixed @ with_


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 1.0])
def test_reflections_are_turned_round_before_they_are_mixed(share):
    reflections = 0
    for seed in range(6):
        trained, reference = factors_of(seed), factors_of(seed + 20)
        found = towards(trained, reference, jnp.int32(1), share)
        for layer in range(4):
            own, target = (np.asarray(each.a[layer], np.float64) for each in (trained, reference))
            left, _, right = np.linalg.svd(own.T @ target)
            reflections += np.linalg.det(left @ right) < 0
            np.testing.assert_allclose(found.a[layer], own @ as_published(own.T @ target, share), atol=1e-4)
    assert reflections > 5
