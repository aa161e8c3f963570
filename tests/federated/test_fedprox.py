"""FedProx: the proximal term in what is reduced, and FedIT in everything else."""

import dataclasses

import jax
import numpy as np
import pytest

from devft_jax.federated.algorithms.fedprox import fedprox
from devft_jax.federated.options import OptimizerOptions
from tests.federated.harness import (
    FIVE,
    RATE,
    SEVEN,
    TWO,
    assert_close,
    assert_identical,
    engine,
    fedit_with,
    largest_change,
    participant,
    run_round,
    server_with,
)
from tests.tiny import random_adapter

PLAIN = OptimizerOptions(optimizer="sgd", clip_norm=0.0)


def with_mu(mu, options=TWO):
    return fedprox(dataclasses.replace(options, prox_mu=mu))


def leaves_of(*trees):
    return map(jax.tree.leaves, trees)


def test_the_term_is_half_mu_times_the_squared_distance_from_the_rounds_start():
    algorithm = with_mu(0.3, SEVEN)
    train, frozen = algorithm.start(participant(algorithm, server_with(SEVEN)))
    assert algorithm.penalty(train, frozen) == 0
    moved = random_adapter(SEVEN, seed=9).lora
    squared = sum(np.sum((np.array(x, "f8") - np.array(y)) ** 2) for x, y in zip(*leaves_of(moved, train), strict=True))
    assert algorithm.penalty(moved, frozen) == pytest.approx(0.15 * squared, rel=1e-5)
    gradient = jax.grad(algorithm.penalty)(moved, frozen)
    assert_close(gradient, jax.tree.map(lambda x, y: 0.3 * (x - y), moved, train))


def test_without_mu_a_round_is_fedits():
    wanted = run_round(engine(fedit_with()), server_with(), FIVE)
    found = run_round(engine(with_mu(0.0)), server_with(), FIVE)
    assert_close(found.server, wanted.server, atol=1e-6)
    np.testing.assert_allclose(found.losses, wanted.losses, atol=1e-6)
    assert (found.bytes_up, found.bytes_down) == (wanted.bytes_up, wanted.bytes_down)


def test_the_term_holds_clients_back_and_is_not_in_the_reported_loss():
    free = run_round(engine(fedit_with(), PLAIN), server_with(), FIVE)
    # With lr mu = 0.9 a step takes nine tenths of the way back before it follows the gradient.
    held = run_round(engine(with_mu(0.9 / RATE), PLAIN), server_with(), FIVE)
    assert (held.update_norms < 0.8 * free.update_norms).all()
    # Step 1 is FedIT's, because the term has no gradient there; so the loss before step 2 would show the term.
    np.testing.assert_allclose(held.losses[:, :2], free.losses[:, :2], atol=1e-5)
    assert largest_change(held.losses[:, 2], free.losses[:, 2]) > 1e-3


def test_layers_that_do_not_learn_stay():
    rows = np.array([True, False, True, False])
    result = run_round(engine(with_mu(0.5)), server_with(), FIVE, train_rows=rows)
    for new, old in zip(*leaves_of(result.server.lora, server_with().lora), strict=True):
        assert_close(new[~rows], old[~rows], atol=1e-6)
        assert largest_change(new[rows], old[rows]) > 1e-3


def test_messages_are_fedits():
    algorithm, federated = with_mu(0.1, SEVEN), fedit_with(SEVEN)
    server = server_with(SEVEN)
    at_start = participant(algorithm, server)
    assert_identical(at_start.down, participant(federated, server).down)
    train, _ = algorithm.start(at_start)
    moved = jax.tree.map(lambda leaf: leaf + 1, train)
    assert_identical(algorithm.finish(at_start, moved)[0], federated.finish(at_start, moved)[0])
