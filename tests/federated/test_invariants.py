"""Invariants of all algorithms from one table: what each promises, and which laws follow from it.

A law is stated on what a model computes: `update` is what an adapter adds to each projection, scale a b + delta, written
out in float64. Shapes are not square, nothing is symmetric, weights and ranks differ.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.accounting.communication import round_messages
from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithm import Clients
from devft_jax.federated.algorithms import ALGORITHMS
from devft_jax.federated.algorithms.options import MethodConfig
from devft_jax.models.architectures import ARCHITECTURES
from devft_jax.models.llama import Adapter
from tests.federated.harness import (
    BASE,
    FIVE,
    SGD,
    aggregated,
    assert_close,
    assert_identical,
    client,
    contributed,
    engine,
    init,
    participant,
    run_round,
    trained_messages,
)
from tests.tiny import CONFIG

K = 3
OPTIONS = MethodConfig(
    rank=4, alpha=6.0, dropout=0.0, targets=("q", "v", "down"), clients_per_round=K, domain_top=40, server_tau=0.1
)
SIZES = {
    "meta-llama/Llama-2-7b-hf": (8_388_608, 8_388_608),
    "meta-llama/Llama-3.1-8B": (8_388_608, 5_242_880),
    "meta-llama/Llama-2-13b-hf": (13_107_200, 13_107_200),
}


@dataclasses.dataclass(frozen=True)
class Traits:
    """What an algorithm promises.

    Attributes:
      down, up: bytes of a round's messages in float32 for a and b elements in all factors `a` and `b` and K participants.
      mean: what the global model is after a round from the first state: of the clients' factors ("factors"), of their
        products ("products"), or something else (None) that its own tests state.
      neutral: options that make it FedAvg of the factors; None where there are none.
      shares: whether the clients' updates reach the server at all.
    """

    down: Callable[[int, int, int], int]
    up: Callable[[int, int, int], int]
    mean: str | None = None
    neutral: dict[str, Any] | None = None
    shares: bool = True


def both(a: int, b: int, participants: int) -> int:
    """a and b in float32."""
    return 4 * (a + b)


def twice(a: int, b: int, participants: int) -> int:
    """a and b and as much again."""
    return 8 * (a + b)


def both_and_rank(a: int, b: int, participants: int) -> int:
    """a and b in float32 and the client's rank."""
    return 4 * (a + b) + 4


def quarter(a: int, b: int, participants: int) -> int:
    """A quarter of the entries in float32, and a bit for each of them all."""
    return -(-(a + b) // 4) * 4 + -(-(a + b) // 8)


def nothing(a: int, b: int, participants: int) -> int:
    """No message."""
    return 0


def hypernetwork(a: int, b: int, participants: int) -> int:
    """C2A's, whose size follows the model's width and depth alone, and its gate."""
    return 4 * ({8_388_608: 237_936, 13_107_200: 296_368}[a] + 1)


def only_a(a: int, b: int, participants: int) -> int:
    """a in float32."""
    return 4 * a


def only_b(a: int, b: int, participants: int) -> int:
    """b in float32."""
    return 4 * b


def of_all(a: int, b: int, participants: int) -> int:
    """a and b of every participant in float32, or factors of as many directions."""
    return participants * 4 * (a + b)


def of_all_and_rank(a: int, b: int, participants: int) -> int:
    """a and b of every participant in float32, and how many directions they have."""
    return of_all(a, b, participants) + 4


TRAITS = {
    "fedit": Traits(both, both, mean="factors", neutral={}),
    "flora": Traits(of_all_and_rank, both, mean="products"),
    "fedsa-lora": Traits(only_a, only_a),
    "dofit": Traits(both, both, neutral={"domains": 1}),
    "c2a": Traits(hypernetwork, hypernetwork),
    "ffa-lora": Traits(only_b, only_b, mean="products"),
    "hetlora": Traits(both_and_rank, both_and_rank),
    "federa": Traits(both, both, mean="factors"),
    "flasc": Traits(quarter, quarter),
    "fedprox": Traits(both, both, mean="factors", neutral={"prox_mu": 0.0}),
    "scaffold": Traits(twice, twice, mean="factors", neutral={}),
    "fedavgm": Traits(both, both, neutral={"server_beta1": 0.0}),
    "fedadagrad": Traits(both, both),
    "fedyogi": Traits(both, both),
    "fedadam": Traits(both, both),
    "fedex-lora": Traits(of_all, both, mean="products"),
    "fedrot-lora": Traits(both, both, neutral={"rotation": 0.0}),
    "local-only": Traits(nothing, nothing, shares=False),
    "central": Traits(both, both, mean="factors", neutral={}),
}


@functools.cache
def made(name: str, **changes: Any) -> Any:
    """The algorithm under the tests' options."""
    return ALGORITHMS[name](dataclasses.replace(OPTIONS, **changes))


@functools.cache
def started(name: str, **changes: Any) -> tuple[Any, Any, list[Any]]:
    """The algorithm in a first stage at full depth, and the rows of its participants."""
    algorithm = made(name, **changes)
    clients = Clients(K + 2)
    full = init(algorithm, clients=clients.size)
    bank = jax.device_get(algorithm.init_bank(clients, full))
    identity = LayerMap.identity(CONFIG.layers)
    server = algorithm.enter(algorithm.submodel(full, identity), BASE)
    rows = [jax.tree.map(lambda leaf, where=index: leaf[where], bank) for index in range(K)]
    return algorithm, server, [algorithm.submodel_row(row, identity) for row in rows]


def update(adapter: Adapter) -> dict[str, np.ndarray]:
    """What an adapter adds to each projection, f64[L, in, out]."""
    total: dict[str, np.ndarray] = {name: np.asarray(delta, np.float64) for name, delta in adapter.delta.items()}
    for name, factors in adapter.lora.items():
        product = np.asarray(factors.a, np.float64) @ np.asarray(factors.b, np.float64)
        total[name] = total.get(name, 0.0) + float(adapter.scale) * product
    return total


def assert_same_model(first: Adapter, second: Adapter, atol: float = 1e-5) -> None:
    """Two adapters compute the same."""
    one, other = update(first), update(second)
    for name in {*one, *other}:
        np.testing.assert_allclose(one.get(name, 0.0) + 0.0, other.get(name, 0.0) + 0.0, atol=atol)
    assert_close(getattr(first, "hyper", None), getattr(second, "hyper", None), atol=atol)


def noise(seed: int, size: float = 0.1) -> Callable[[int, jax.Array], jax.Array]:
    """A movement that differs from client to client and leaf to leaf."""

    def move(index: int, leaf: jax.Array) -> jax.Array:
        rng = np.random.default_rng([seed, index, leaf.size])
        return leaf + jnp.asarray(size * rng.normal(size=leaf.shape), leaf.dtype)

    return move


def alike(index: int, leaf: jax.Array) -> jax.Array:
    """A movement that all clients make."""
    return noise(3)(0, leaf)


def still(index: int, leaf: jax.Array) -> jax.Array:
    """No movement."""
    return leaf


EVERY = pytest.mark.parametrize("name", ALGORITHMS)
SHARING = pytest.mark.parametrize("name", [name for name, traits in TRAITS.items() if traits.shares])


def test_the_table_is_of_all_algorithms():
    assert list(TRAITS) == list(ALGORITHMS)


@EVERY
@pytest.mark.parametrize("model", SIZES)
def test_messages_have_the_sizes_that_the_method_promises(name, model):
    a, b = SIZES[model]
    algorithm = ALGORITHMS[name](MethodConfig(rank=32, alpha=64.0, clients_per_round=2))
    messages = round_messages(algorithm, ARCHITECTURES[model], ARCHITECTURES[model].layers)
    traits = TRAITS[name]
    assert (messages.bytes_down, messages.bytes_up) == (traits.down(a, b, 2), traits.up(a, b, 2))


@EVERY
def test_clients_that_learn_nothing_leave_the_model_as_it_was(name):
    algorithm, server, rows = started(name)
    ups, _ = trained_messages(algorithm, server, rows, move=still)
    after, metrics = aggregated(algorithm, server, ups, [5.0, 1.0, 2.5])
    assert_same_model(algorithm.view(after), algorithm.view(server))
    assert all(np.isfinite(value) and value.shape == () for value in metrics.values())


@EVERY
def test_the_first_round_begins_at_the_untuned_base(name):
    algorithm, server, rows = started(name)
    for index, row in enumerate(rows):
        train, frozen = algorithm.start(participant(algorithm, server, row, seed=index))
        for added in update(algorithm.adapter(train, frozen)).values():
            np.testing.assert_allclose(added, 0.0, atol=1e-5)


@SHARING
def test_the_order_of_clients_is_irrelevant(name):
    algorithm, server, rows = started(name)
    ups, _ = trained_messages(algorithm, server, rows, move=noise(1))
    straight, _ = aggregated(algorithm, server, ups, [5.0, 1.0, 2.5])
    turned, _ = aggregated(algorithm, server, ups[::-1], [2.5, 1.0, 5.0])
    assert_same_model(algorithm.view(straight), algorithm.view(turned))


@SHARING
def test_updates_reach_the_global_model(name):
    algorithm, server, rows = started(name)
    # Two rounds: where b begins at zero and a alone is shared, the first moves no product.
    for seed in (1, 2):
        ups, _ = trained_messages(algorithm, server, rows, move=noise(seed))
        server, _ = aggregated(algorithm, server, ups, [5.0, 1.0, 2.5])
    first = started(name)[1]
    changes = [
        np.abs(np.asarray(new, np.float64) - np.asarray(old, np.float64)).max()
        for new, old in zip(jax.tree.leaves(algorithm.view(server)), jax.tree.leaves(algorithm.view(first)), strict=True)
    ]
    assert max(changes) > 1e-4


@pytest.mark.parametrize("name", [name for name, traits in TRAITS.items() if traits.mean])
def test_the_global_model_is_the_mean_that_the_method_takes(name):
    algorithm, server, rows = started(name)
    weights = np.array([5.0, 1.0, 2.5]) if algorithm.weighting == "examples" else np.ones(K)
    ups, _ = trained_messages(algorithm, server, rows, move=noise(1))
    after, _ = aggregated(algorithm, server, ups, weights)
    own = []
    for index, row in enumerate(rows):
        train, frozen = algorithm.start(participant(algorithm, server, row, seed=index))
        own.append(algorithm.adapter(jax.tree.map(lambda leaf, who=index: noise(1)(who, leaf), train), frozen))
    shares = weights / weights.sum()
    if TRAITS[name].mean == "factors":
        mean = jax.tree.map(lambda *leaves: sum(map(np.multiply, shares, leaves)), *[adapter.lora for adapter in own])
        assert_same_model(algorithm.view(after), own[0].replace(lora=mean))
        return
    found = update(algorithm.view(after))
    for projection in OPTIONS.targets:
        wanted = sum(share * update(adapter)[projection] for share, adapter in zip(shares, own, strict=True))
        np.testing.assert_allclose(found[projection], wanted, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, traits in TRAITS.items() if traits.mean])
def test_identical_clients_are_what_the_server_becomes(name):
    algorithm, server, rows = started(name, client_ranks=None)
    same = [participant(algorithm, server, rows[0], seed=0)] * K
    ups = []
    for each in same:
        train, frozen = algorithm.start(each)
        moved = jax.tree.map(functools.partial(alike, 0), train)
        ups.append(algorithm.finish(each, moved)[0])
    after, _ = aggregated(algorithm, server, ups, [5.0, 1.0, 2.5])
    assert_same_model(algorithm.view(after), algorithm.adapter(moved, frozen))


@pytest.mark.parametrize("name", [name for name, traits in TRAITS.items() if traits.neutral is not None])
def test_its_neutral_form_is_federated_averaging(name):
    neutral = TRAITS[name].neutral
    states = {}
    for each, changes in ((name, neutral), ("fedit", {})):
        algorithm, server, rows = started(each, **changes)
        for seed in (1, 2):
            ups, rows = trained_messages(algorithm, server, rows, move=noise(seed))
            server, _ = aggregated(algorithm, server, ups, [2.0, 2.0, 2.0])
        states[each] = algorithm.view(server)
    assert_same_model(states[name], states["fedit"])


@EVERY
def test_contributions_are_float32_and_nothing_at_weight_zero(name):
    algorithm, server, rows = started(name, message_dtype="bfloat16")
    ups, _ = trained_messages(algorithm, server, rows, move=noise(1))
    floats = [leaf for leaf in jax.tree.leaves(ups) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    # Where all examples lie in one place nothing travels, and what the server hands itself is not rounded.
    assert {leaf.dtype for leaf in floats} <= {jnp.dtype("float32" if algorithm.pools else "bfloat16")}
    sums = contributed(algorithm, ups, [5.0, 1.0, 2.5])
    assert {leaf.dtype for leaf in jax.tree.leaves(sums)} <= {jnp.dtype("float32")}
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(contributed(algorithm, ups, [0.0] * K)))


@SHARING
def test_a_round_does_not_depend_on_the_scale_of_the_weights(name):
    algorithm, server, rows = started(name)
    ups, _ = trained_messages(algorithm, server, rows, move=noise(1))
    one, _ = aggregated(algorithm, server, ups, [5.0, 1.0, 2.5])
    thousand, _ = aggregated(algorithm, server, ups, [5000.0, 1000.0, 2500.0])
    assert_same_model(algorithm.view(one), algorithm.view(thousand))


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if jax.tree.leaves(started(name)[2])])
def test_rows_of_clients_that_sit_out_stay_bit_for_bit(name):
    algorithm, server, _ = started(name)
    bank = jax.device_get(algorithm.init_bank(Clients(8), init(algorithm, clients=8)))
    before = jax.tree.map(np.copy, bank)
    members = [client(6), client(1), client(3)]
    result = run_round(engine(algorithm, SGD, 1, K), server, members, bank=bank)
    assert_identical(bank, before)
    assert all(len(leaf) == K for leaf in jax.tree.leaves(result.bank_rows))


@EVERY
def test_a_cohort_streams_in_any_chunks(name):
    algorithm, server, _ = started(name)
    bank = jax.device_get(algorithm.init_bank(Clients(5), init(algorithm, clients=5)))
    results = [
        run_round(engine(algorithm, SGD, devices, at_once), server, FIVE[:K], bank=bank)
        for devices, at_once in ((1, K), (2, 2))
    ]
    assert_same_model(*(algorithm.view(result.server) for result in results))
    assert_close(results[0].bank_rows, results[1].bank_rows, atol=1e-5)
    np.testing.assert_allclose(results[0].losses, results[1].losses, rtol=1e-4)
    assert (results[0].bytes_up, results[0].bytes_down) == (results[1].bytes_up, results[1].bytes_down)
