"""FedSVD: b is trained alone, and the refactored product is that of the mean of b."""

import functools

import jax
import numpy as np

from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.fedsvd import fedsvd
from devft_jax.federated.messages import message_bytes
from tests.federated.harness import aggregated, assert_identical, init, participant, trained_messages
from tests.federated.records import noise
from tests.tiny import random_adapter

OPTIONS = MethodConfig(rank=3, alpha=4.5, dropout=0.0, targets=("v", "down"))
WEIGHTS = np.array([3.0, 11.0, 0.5])

made = functools.cache(fedsvd)


def test_the_product_is_the_mean_of_the_products_and_a_is_orthonormal():
    algorithm, server = made(OPTIONS), random_adapter(OPTIONS)
    ups, _ = trained_messages(algorithm, server, [{}] * 3, move=noise(1))
    after, _ = aggregated(algorithm, server, ups, WEIGHTS)
    for name, old in server.lora.items():
        mean = np.average([np.asarray(noise(1)(who, old.b), "f8") for who in range(3)], axis=0, weights=WEIGHTS)
        wanted = np.asarray(old.a, "f8") @ mean
        a, b = (np.asarray(leaf, "f8") for leaf in (after.lora[name].a, after.lora[name].b))
        np.testing.assert_allclose(a @ b, wanted, atol=1e-5)
        np.testing.assert_allclose(np.swapaxes(a, 1, 2) @ a, np.broadcast_to(np.eye(3), (4, 3, 3)), atol=1e-5)
        # b has the singular values, in their order.
        values = np.linalg.svd(wanted, compute_uv=False)[:, :3]
        np.testing.assert_allclose(np.linalg.norm(b, axis=-1), values, atol=1e-5)


def test_b_alone_is_sent_up_and_trained():
    algorithm = made(OPTIONS)
    server = init(algorithm)
    at_start = participant(algorithm, server)
    train, frozen = algorithm.start(at_start)
    assert_identical(train, {name: factors.b for name, factors in server.lora.items()})
    assert_identical(frozen, {name: factors.a for name, factors in server.lora.items()})
    ups, _ = trained_messages(algorithm, server, [{}], move=noise(1))
    sizes = {part: sum(4 * getattr(each, part).size for each in server.lora.values()) for part in ("a", "b")}
    assert message_bytes(ups[0]) == sizes["b"]
    assert message_bytes(at_start.down) == sizes["a"] + sizes["b"]


def test_a_round_without_change_keeps_the_factors():
    algorithm, server = made(OPTIONS), random_adapter(OPTIONS)
    ups, _ = trained_messages(algorithm, server, [{}] * 3, move=lambda who, leaf: leaf)
    after, _ = aggregated(algorithm, server, ups, WEIGHTS)
    assert_identical(jax.tree.leaves(after.lora), jax.tree.leaves(server.lora))
