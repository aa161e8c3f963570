"""FedMomentum: the adapter has the strongest directions of the mean of the products, the correction all others, times s."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.fedmomentum import fedmomentum
from devft_jax.models.adapter import LoraFactors
from tests.federated.harness import aggregated, assert_identical, init, participant, trained_messages
from tests.federated.records import noise, update
from tests.tiny import random_adapter

# v [16, 8] has a dense correction with three participants and factors with two, down [24, 16] factors in both.
OPTIONS = MethodConfig(rank=3, alpha=4.5, dropout=0.0, targets=("v", "down"))
SCALE = 1.5
WEIGHTS = np.array([3.0, 11.0, 0.5])

made = functools.cache(fedmomentum)


def begun(participants, **changes):
    algorithm = made(dataclasses.replace(OPTIONS, clients_per_round=participants, **changes))
    return algorithm, init(algorithm).replace(adapter=random_adapter(OPTIONS))


@pytest.mark.parametrize("participants", [1, 2, 3])
def test_the_model_is_the_mean_of_the_clients_models_and_the_adapter_its_best_part(participants):
    algorithm, server = begun(participants)
    forms = {name: isinstance(leaf, LoraFactors) for name, leaf in server.correction.increment.items()}
    assert forms == {1: {}, 2: {"v": True, "down": True}, 3: {"v": False, "down": True}}[participants]
    weights = WEIGHTS[:participants]
    for seed in (1, 2):
        before = update(algorithm.view(server))
        frozen, old = server.correction.total(), server.adapter.lora
        ups, _ = trained_messages(algorithm, server, [{}] * participants, move=noise(seed))
        server, metrics = aggregated(algorithm, server, ups, weights)
        found = update(algorithm.view(server))
        for name, factors in server.adapter.lora.items():
            own = [
                np.asarray(noise(seed)(who, old[name].a), "f8") @ np.asarray(noise(seed)(who, old[name].b), "f8")
                for who in range(participants)
            ]
            mean = np.average(own, axis=0, weights=weights)
            np.testing.assert_allclose(found[name], np.asarray(frozen[name], "f8") + SCALE * mean, atol=2e-5)
            left, values, right = np.linalg.svd(mean, full_matrices=False)
            best = (left[..., :3] * values[:, None, :3]) @ right[:, :3]
            a, b = (np.asarray(leaf, "f8") for leaf in (factors.a, factors.b))
            np.testing.assert_allclose(a @ b, best, atol=1e-5)
            np.testing.assert_allclose(np.swapaxes(a, 1, 2) @ a, b @ np.swapaxes(b, 1, 2), atol=1e-4)
            assert np.abs(found[name] - before[name]).max() > 1e-3
        assert (metrics["residual_norm"] > 1e-3) == (participants > 1)


def test_clients_have_the_servers_correction_and_layers_at_rest_get_none():
    algorithm, server = begun(3, message_dtype="bfloat16")

    def move(who, leaf):
        return jax.numpy.where((jax.numpy.arange(4) > 1)[:, None, None], noise(1)(who, leaf), leaf)

    ups, _ = trained_messages(algorithm, server, [{}] * 3, move=move)
    after, _ = aggregated(algorithm, server, ups, WEIGHTS)
    _, frozen = algorithm.start(participant(algorithm, after))
    assert_identical(frozen, algorithm.view(after).delta)
    for name, factors in after.adapter.lora.items():
        assert np.abs(frozen[name][:2]).max() == 0
        assert np.abs(frozen[name][2:]).max() > 0
        assert_identical(factors.a[:2], server.adapter.lora[name].a[:2])
