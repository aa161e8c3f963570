"""Messages of 16 bits carry steps far below their precision, by every algorithm and at the bytes of whole factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.federated.algorithms import ALGORITHMS
from devft_jax.federated.messages import message_bytes
from devft_jax.federated.options import OptimizerOptions
from tests.federated.harness import FIVE, aggregated, engine, fedit_with, init, participant, run_round, trained_messages
from tests.federated.records import WEIGHTS, noise, started, update

SENDING = [name for name in ALGORITHMS if name not in ("local-only", "central")]
# DoFIT's own step between domains does not depend on what a round has learned; FedAdagrad's shrinks with all rounds so far.
OTHERWISE = {"dofit": {"domain_step": 0.0}, "fedadagrad": {"server_learning_rate": 1.0}}
# Their factors are those of a decomposition. It rounds more than such a step moves, so steps are larger, still far below 16
# bits; and directions of nearly equal size may be turned among themselves, so products are compared, and clients move as a
# gradient does, which turns with the directions.
DECOMPOSED = ("flexlora", "fedsvd", "fedmomentum")
ROUNDS = 4


def leaves_of(algorithm, server) -> dict[str, np.ndarray]:
    """What the server has of the clients' training, by leaf: of FLASC all of its adapter, not what it sends."""
    if algorithm.name in DECOMPOSED:
        return update(algorithm.view(server))
    adapter = server.adapter if algorithm.name == "flasc" else algorithm.view(server)
    return {jax.tree_util.keystr(path): np.asarray(leaf, "f8") for path, leaf in jax.tree.leaves_with_path(adapter)}


def moved_messages(algorithm, server, rows, seed, step):
    """Messages and rows of clients that move by about `step`."""
    if algorithm.name not in DECOMPOSED:
        return trained_messages(algorithm, server, rows, move=noise(seed, step))
    pairs = []
    for index, row in enumerate(rows):
        at_start = participant(algorithm, server, row, seed=index)
        train, frozen = algorithm.start(at_start)

        def slope(train, index=index, frozen=frozen):
            products = [factors.a @ factors.b for factors in algorithm.adapter(train, frozen).lora.values()]
            return sum(jnp.sum(product * noise(seed)(index, jnp.zeros(product.shape))) for product in products)

        change = jax.tree.map(lambda leaf: 10 * step * leaf, jax.grad(slope)(train))
        pairs.append(algorithm.finish(at_start, jax.tree.map(jnp.add, train, change)))
    return [up for up, _ in pairs], [row for _, row in pairs]


def change_by(name: str, dtype: str, step: float) -> dict[str, np.ndarray]:
    """What small steps of the clients change in the middle of training; the steps are alike in every dtype.

    Leaves that change by no more than float32's own rounding, as FedEx-LoRA's correction by products of steps, are zero.
    """
    algorithm, server, rows = started(name, message_dtype=dtype, **OTHERWISE.get(name, {}))
    for seed in range(2):
        ups, rows = moved_messages(algorithm, server, rows, seed, 0.1)
        server, _ = aggregated(algorithm, server, ups, WEIGHTS)
    before = leaves_of(algorithm, server)
    step *= 100 if name in DECOMPOSED else 1
    for seed in range(ROUNDS):
        ups, rows = moved_messages(algorithm, server, rows, 10 + seed, step)
        server, _ = aggregated(algorithm, server, ups, WEIGHTS)
    changes = {path: leaf - before[path] for path, leaf in leaves_of(algorithm, server).items()}
    return {
        path: change * (np.linalg.norm(change) > 1e-6 * np.linalg.norm(before[path])) for path, change in changes.items()
    }


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Of two arrays as vectors."""
    return float(np.sum(one * other) / (np.linalg.norm(one) * np.linalg.norm(other)))


@pytest.mark.parametrize("step", [1e-6, pytest.param(1e-5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SENDING)
def test_small_steps_arrive_and_add_up(name, step):
    wanted = change_by(name, "float32", step)
    moved = [path for path, leaf in wanted.items() if np.any(leaf)]
    assert moved
    for dtype in ("bfloat16", "float16"):
        found = change_by(name, dtype, step)
        for path in moved:
            assert cosine(found[path], wanted[path]) > 0.99, (dtype, path)
            assert np.linalg.norm(found[path]) == pytest.approx(np.linalg.norm(wanted[path]), rel=0.05)


@pytest.mark.parametrize("name", SENDING)
def test_a_message_of_16_bits_has_half_the_bytes(name):
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        algorithm, server, rows = started(name, message_dtype=dtype, client_ranks=None, density_down=1.0, density_up=1.0)
        ups, _ = trained_messages(algorithm, server, rows, move=noise(1))
        sizes[dtype] = np.array([message_bytes(participant(algorithm, server, rows[0]).down), message_bytes(ups[0])])
    # Ranks and the number of clients are whole numbers and travel beside.
    rank = {"flora": [4, 0], "hetlora": [4, 4], "rest-of-world": [4, 0]}.get(name, [0, 0])
    np.testing.assert_array_equal(sizes["float32"] - rank, 2 * (sizes["bfloat16"] - rank))


@pytest.mark.parametrize("rate", [1e-6, 1e-5])
def test_training_at_small_rates_is_that_of_float32(rate):
    changes = {}
    for dtype in ("float32", "bfloat16"):
        algorithm = fedit_with(message_dtype=dtype)
        server = init(algorithm)
        before = server.lora
        for _ in range(3):
            server = run_round(engine(algorithm, OptimizerOptions()), server, FIVE, lr=rate).server
        changes[dtype] = jax.tree.map(lambda new, old: np.asarray(new - old, "f8"), server.lora, before)
    for name, factors in changes["float32"].items():
        assert cosine(changes["bfloat16"][name].a, factors.a) > 0.99
        assert cosine(changes["bfloat16"][name].b, factors.b) > 0.99
