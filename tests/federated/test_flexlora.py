"""FlexLoRA: the best approximation of the mean of the products, at the server's rank and at each client's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.errors import InputError
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.flexlora import flexlora
from devft_jax.federated.messages import message_bytes, ranks_of
from devft_jax.models.lora import factor_norm
from tests.federated.harness import aggregated, assert_identical, init, participant, trained_messages
from tests.federated.records import noise
from tests.tiny import random_adapter

OPTIONS = MethodConfig(rank=4, alpha=6.0, dropout=0.0, targets=("v", "down"), clients_per_round=3)
WEIGHTS = np.array([3.0, 11.0, 0.5])

made = functools.cache(flexlora)


def with_options(**changes):
    return made(dataclasses.replace(OPTIONS, **changes))


def wanted_product(server, ranks, move):
    """sum_i w_i a_i b_i in numpy, each a_i b_i of the client's first directions after training."""
    total = {}
    for name, old in server.lora.items():
        products = []
        for who, rank in enumerate(ranks):
            received = (np.asarray(old.a)[..., :rank], np.asarray(old.b)[:, :rank])
            full = [np.zeros(np.shape(leaf), np.float32) for leaf in (old.a, old.b)]
            full[0][..., :rank], full[1][:, :rank] = received
            a, b = (np.asarray(move(who, jnp.asarray(leaf)), "f8") for leaf in full)
            products.append(a[..., :rank] @ b[:, :rank])
        total[name] = np.average(products, axis=0, weights=WEIGHTS)
    return total


def truncated(matrix, rank):
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return (left[..., :rank] * values[:, None, :rank]) @ right[:, :rank]


@pytest.mark.parametrize(("split", "ranks"), [("orthonormal", None), ("balanced", None), ("orthonormal", (4, 1, 2))])
def test_the_server_has_the_truncated_decomposition_of_the_mean_of_products(split, ranks):
    algorithm = with_options(svd_split=split, client_ranks=ranks)
    server = random_adapter(OPTIONS)
    rows = [{"rank": jnp.int32(rank)} for rank in ranks] if ranks else [{}] * 3
    ups, _ = trained_messages(algorithm, server, rows, move=noise(1))
    after, metrics = aggregated(algorithm, server, ups, WEIGHTS)
    lost, size = 0.0, 0.0
    for name, product in wanted_product(server, ranks or (4, 4, 4), noise(1)).items():
        a, b = (np.asarray(leaf, "f8") for leaf in (after.lora[name].a, after.lora[name].b))
        best = truncated(product, 4)
        np.testing.assert_allclose(a @ b, best, atol=1e-5)
        # The first directions are the best of their number.
        np.testing.assert_allclose(a[..., :2] @ b[:, :2], truncated(product, 2), atol=1e-5)
        gram = np.swapaxes(a, 1, 2) @ a
        other = b @ np.swapaxes(b, 1, 2)
        expected = np.broadcast_to(np.eye(4), gram.shape) if split == "orthonormal" else other
        np.testing.assert_allclose(gram, expected, atol=1e-4)
        lost, size = lost + np.sum((product - best) ** 2), size + np.sum(product**2)
    assert metrics["truncation_error"] == pytest.approx(np.sqrt(lost / size), abs=3e-3)


def test_it_is_exact_where_the_products_have_no_more_directions():
    algorithm = with_options(rank=4, client_ranks=(1, 2, 1))
    server = random_adapter(OPTIONS)
    ups, _ = trained_messages(algorithm, server, [{"rank": jnp.int32(rank)} for rank in (1, 2, 1)], move=noise(2))
    after, metrics = aggregated(algorithm, server, ups, WEIGHTS)
    for name, product in wanted_product(server, (1, 2, 1), noise(2)).items():
        factors = after.lora[name]
        np.testing.assert_allclose(np.asarray(factors.a, "f8") @ np.asarray(factors.b, "f8"), product, atol=1e-5)
    assert metrics["truncation_error"] < 3e-3
    assert factor_norm(after.lora) > 1


def test_messages_have_the_clients_ranks():
    algorithm = with_options(client_ranks=(4, 1, 2))
    whole = message_bytes(participant(made(OPTIONS), random_adapter(OPTIONS)).down)
    down = participant(algorithm, random_adapter(OPTIONS), {"rank": jnp.int32(1)}).down
    assert message_bytes(down, ranks_of(down)) == whole // 4 + 4
    with pytest.raises(InputError, match=r"client_ranks 8,2 has a rank above rank 4; raise rank to the largest"):
        with_options(client_ranks=(8, 2))


def test_a_layer_that_nobody_changed_keeps_its_factors():
    algorithm, server = made(OPTIONS), random_adapter(OPTIONS)
    above = jnp.arange(4) > 1

    def move(who, leaf):
        return jnp.where(above[:, None, None], noise(1)(who, leaf), leaf)

    after, _ = aggregated(algorithm, server, trained_messages(algorithm, server, [{}] * 3, move=move)[0], WEIGHTS)
    for new, old in zip(jax.tree.leaves(after.lora), jax.tree.leaves(server.lora), strict=True):
        assert_identical(new[:2], old[:2])
        assert np.abs(new[2:] - old[2:]).max() > 1e-3


def test_the_first_state_is_loras():
    assert_identical(init(made(OPTIONS)).lora["v"].b, np.zeros((4, 4, 8), "f4"))
