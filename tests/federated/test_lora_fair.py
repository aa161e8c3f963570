"""LoRA-FAIR: the correction of b against its closed form in numpy, and what remains of the error."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.algorithms.lora_fair import lora_fair
from tests.federated.harness import aggregated, assert_close, trained_messages
from tests.federated.records import noise
from tests.tiny import random_adapter

OPTIONS = MethodConfig(rank=3, alpha=4.5, dropout=0.0, targets=("v", "down"), clients_per_round=3)
WEIGHTS = np.array([3.0, 11.0, 0.5])

made = functools.cache(lora_fair)


def rounds(penalty, participants=3, seed=1):
    """LoRA-FAIR's and FedIT's states after a round, LoRA-FAIR's metrics, and the clients' factors in float64."""
    options = dataclasses.replace(OPTIONS, fair_penalty=penalty, clients_per_round=participants)
    server, algorithm = random_adapter(OPTIONS), made(options)
    ups, _ = trained_messages(algorithm, server, [{}] * participants, move=noise(seed, 0.5))
    after, metrics = aggregated(algorithm, server, ups, WEIGHTS[:participants])
    plain, _ = aggregated(fedit(OPTIONS), server, ups, WEIGHTS[:participants])
    own = {
        name: [[np.asarray(noise(seed, 0.5)(who, leaf), "f8") for leaf in (old.a, old.b)] for who in range(participants)]
        for name, old in server.lora.items()
    }
    return after, plain, metrics, own


@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_b_moves_by_the_least_squares_solution(penalty):
    after, plain, metrics, own = rounds(penalty)
    errors, sizes = [], []
    for name, clients in own.items():
        wanted = np.average([a @ b for a, b in clients], axis=0, weights=WEIGHTS)
        a, b = (np.average([each[place] for each in clients], axis=0, weights=WEIGHTS) for place in (0, 1))
        np.testing.assert_allclose(after.lora[name].a, a, atol=1e-5)
        for layer in range(4):
            # min ||X - a (b + d)||^2 + lambda ||d||^2, as one least-squares problem.
            tall = np.concatenate([a[layer], np.sqrt(penalty) * np.eye(3)])
            rest = np.concatenate([wanted[layer] - a[layer] @ b[layer], np.zeros((3, b.shape[-1]))])
            shift = np.linalg.lstsq(tall, rest, rcond=None)[0]
            np.testing.assert_allclose(after.lora[name].b[layer], b[layer] + shift, atol=1e-4)
        of = {which: np.asarray(state.lora[name].a, "f8") @ np.asarray(state.lora[name].b, "f8")
              for which, state in (("fair", after), ("plain", plain))}  # fmt: skip
        assert np.linalg.norm(wanted - of["fair"]) < np.linalg.norm(wanted - of["plain"])
        errors.append(np.sum((wanted - of["fair"]) ** 2))
        sizes.append(np.sum(wanted**2))
    assert metrics["aggregation_error"] == pytest.approx(np.sqrt(sum(errors) / sum(sizes)), rel=1e-3)


def test_with_one_client_or_a_large_penalty_it_is_fedit():
    for penalty, participants in ((0.01, 1), (1e9, 3)):
        after, plain, metrics, _ = rounds(penalty, participants)
        assert_close(after.lora, plain.lora, atol=1e-6)
        assert jnp.isfinite(metrics["aggregation_error"])
