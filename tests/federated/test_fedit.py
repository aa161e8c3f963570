"""FedIT: the weighted mean of factors, how far its product is from the mean of products, and what travels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.messages import message_bytes
from devft_jax.federated.round.chunk import zero_sums
from devft_jax.models.adapter import LoraFactors
from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from tests.federated.harness import (
    SEVEN,
    aggregated,
    assert_close,
    changed_to,
    fedit_with,
    init,
    participant,
    server_with,
    weighted_mean,
)
from tests.tiny import random_adapter


def clients_lora(count: int, *, seed: int = 0, same: str = "") -> list[dict[str, LoraFactors]]:
    """Random factors of `count` clients on all projections; those named by `same` are all alike."""
    trees = [random_adapter(SEVEN, seed=100 * seed + index).lora for index in range(count)]
    if not same:
        return trees
    shared = {name: getattr(factors, same) for name, factors in trees[0].items()}
    return [{name: factors.replace(**{same: shared[name]}) for name, factors in tree.items()} for tree in trees]


def aggregate(trees, weights):
    """The server's round on these uploads."""
    server = server_with(SEVEN)
    return aggregated(fedit_with(SEVEN), server, changed_to(trees, server.lora), weights)


def stacked(trees, name):
    """One projection's factors in float64, [K, L, in, r] and [K, L, r, out]."""
    a, b = zip(*((tree[name].a, tree[name].b) for tree in trees), strict=True)
    return np.array(a, np.float64), np.array(b, np.float64)


def exact_error(trees, weights) -> float:
    """||sum w (a - a_m)(b - b_m)|| / ||sum w a b|| over all projections and layers, products written out."""
    shares = np.array(weights) / np.sum(weights)
    error = product = 0.0
    for name in PROJECTIONS:
        a, b = stacked(trees, name)
        mean_a, mean_b = (np.tensordot(shares, each, 1) for each in (a, b))
        covariance = np.einsum("k,klir,klro->lio", shares, a - mean_a, b - mean_b)
        products = np.einsum("k,klir,klro->lio", shares, a, b)
        # The mean of products is not the product of means, and this is by how much.
        np.testing.assert_allclose(products - mean_a @ mean_b, covariance, atol=1e-12)
        error += np.sum(covariance**2)
        product += np.sum(products**2)
    return (error / product) ** 0.5


@pytest.mark.parametrize("weights", [[1.0, 1.0], [3.0, 11.0, 0.5], [5.0] * 8])
def test_the_server_takes_the_weighted_mean_of_both_factors(weights):
    trees = clients_lora(len(weights))
    server, metrics = aggregate(trees, weights)
    mean = weighted_mean(trees, weights)
    assert_close(server.lora, mean)
    change = jax.tree.map(lambda new, old: np.sum((new - old) ** 2), mean, server_with(SEVEN).lora)
    assert metrics["update_norm"] == pytest.approx(float(sum(jax.tree.leaves(change))) ** 0.5, rel=1e-5)
    assert server.scale == server_with(SEVEN).scale


@pytest.mark.parametrize("weights", [[1.0, 1.0], [3.0, 11.0, 0.5], [5.0] * 8])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_aggregation_error_estimates_the_exact_ratio(weights, seed):
    trees = clients_lora(len(weights), seed=seed)
    exact = exact_error(trees, weights)
    _, metrics = aggregate(trees, weights)
    assert exact > 0.1
    assert metrics["aggregation_error"] == pytest.approx(exact, rel=0.25)


@pytest.mark.parametrize("same", ["a", "b"])
def test_the_aggregation_error_is_zero_when_one_factor_is_shared(same):
    trees = clients_lora(4, same=same)
    weights = [1.0, 2.0, 3.0, 4.0]
    assert exact_error(trees, weights) < 1e-12
    assert aggregate(trees, weights)[1]["aggregation_error"] < 1e-5
    # And not because it always is.
    assert aggregate(clients_lora(4), weights)[1]["aggregation_error"] > 0.1


def test_one_client_has_no_aggregation_error_and_no_product_gives_zero():
    assert aggregate(clients_lora(1), [7.0])[1]["aggregation_error"] < 1e-5
    fresh = [
        {name: factors.replace(b=jnp.zeros_like(factors.b)) for name, factors in tree.items()} for tree in clients_lora(3)
    ]
    empty = jax.tree.map(jnp.zeros_like, fresh[0])
    server = server_with(SEVEN).replace(lora=empty)
    assert aggregated(fedit_with(SEVEN), server, changed_to(fresh, empty), [1.0, 2.0, 3.0])[1]["aggregation_error"] == 0


def test_identical_clients_and_their_order_change_nothing():
    trees = clients_lora(3)
    one, _ = aggregate([trees[0]] * 3, [1.0, 5.0, 2.0])
    assert_close(one.lora, trees[0], atol=1e-6)
    straight, _ = aggregate(trees, [1.0, 5.0, 2.0])
    turned, _ = aggregate(trees[::-1], [2.0, 5.0, 1.0])
    assert_close(turned.lora, straight.lora, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_messages_travel_in_their_dtype_and_train_in_float32(dtype):
    algorithm = fedit_with(SEVEN, dtype)
    server = server_with(SEVEN)
    at_start = participant(algorithm, server)
    down = at_start.down
    train, frozen = algorithm.start(at_start)
    up, _ = algorithm.finish(at_start, train)
    assert {leaf.dtype for leaf in jax.tree.leaves((down, up))} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(train)} == {jnp.dtype("float32")}
    rounded = jax.tree.map(lambda leaf: leaf.astype(dtype).astype("float32"), server.lora)
    assert_close(train, rounded, atol=0)
    adapter = algorithm.adapter(train, frozen)
    assert adapter.scale == SEVEN.alpha / SEVEN.rank
    assert adapter.dropout == SEVEN.dropout
    sums = zero_sums(algorithm, up, devices=1)
    assert {leaf.dtype for leaf in jax.tree.leaves(sums)} == {jnp.dtype("float32")}


LLAMA2_7B = ModelConfig(vocabulary=32000, width=4096, feed_forward=11008, layers=32, heads=32, kv_heads=32, head_size=128)
LLAMA2_13B = ModelConfig(vocabulary=32000, width=5120, feed_forward=13824, layers=40, heads=40, kv_heads=40, head_size=128)
LLAMA31_8B = ModelConfig(vocabulary=128256, width=4096, feed_forward=14336, layers=32, heads=32, kv_heads=8, head_size=128)


@pytest.mark.parametrize(("message_dtype", "size"), [("float32", 4), ("bfloat16", 2)])
@pytest.mark.parametrize(
    ("config", "a", "b"),
    [
        (LLAMA2_7B, 8_388_608, 8_388_608),
        (LLAMA2_13B, 13_107_200, 13_107_200),
        # v is [4096, 1024], so b is smaller than a.
        (LLAMA31_8B, 8_388_608, 5_242_880),
    ],
    ids=["llama2-7b", "llama2-13b", "llama3.1-8b"],
)
def test_bytes_of_the_papers_models(config, a, b, message_dtype, size):
    algorithm = fedit(MethodConfig(rank=32, alpha=64.0, targets=("q", "v"), message_dtype=message_dtype))
    server = jax.eval_shape(lambda: init(algorithm, config=config))
    assert sum(factors.a.size for factors in server.lora.values()) == a
    assert sum(factors.b.size for factors in server.lora.values()) == b

    def both_ways(server):
        at_start = participant(algorithm, server)
        train, _ = algorithm.start(at_start)
        return at_start.down, algorithm.finish(at_start, train)[0]

    down, up = jax.eval_shape(both_ways, server)
    assert message_bytes(down) == message_bytes(up) == size * (a + b)


@pytest.mark.parametrize("align", [False, True])
def test_a_stage_fuses_factors_as_they_are_or_turned_alike(align):
    """Two layers with one product in different gauges: turned alike, their mean is that product."""
    algorithm, server = fedit_with(SEVEN), server_with(SEVEN)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(SEVEN.rank, SEVEN.rank)))[0]
    lora = {
        name: LoraFactors(
            a=factors.a.at[1].set(factors.a[0] @ turn),
            b=factors.b.at[1].set(turn.T @ factors.b[0]),
        )
        for name, factors in server.lora.items()
    }
    matrix = np.zeros((3, 4), np.float32)
    matrix[0, :2], matrix[1, 2], matrix[2, 3] = 0.5, 1, 1
    layer_map = LayerMap(jnp.asarray(matrix), jnp.array([0, 0, 1, 2], jnp.int32), align=align)
    fused = algorithm.submodel(server.replace(lora=lora), layer_map).lora
    for name, factors in fused.items():
        wanted = lora[name].a[0] @ lora[name].b[0]
        distance = np.abs(factors.a[0] @ factors.b[0] - wanted).max()
        assert (distance < 1e-5) == align
