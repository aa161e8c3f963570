"""What each algorithm promises, in one table, and the laws that follow from its promises."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from devft_jax.accounting.communication import round_messages
from devft_jax.federated.algorithms import ALGORITHMS, MethodConfig
from devft_jax.models.architecture import ARCHITECTURES
from tests.federated.harness import aggregated, participant, trained_messages
from tests.federated.records import OPTIONS, WEIGHTS, K, alike, assert_same_model, noise, started, update

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
    """

    down: Callable[[int, int, int], int]
    up: Callable[[int, int, int], int]
    mean: str | None = None
    neutral: dict[str, Any] | None = None


def both(a: int, b: int, participants: int) -> int:
    """a and b in float32."""
    return 4 * (a + b)


def twice(a: int, b: int, participants: int) -> int:
    """a and b and as much again."""
    return 8 * (a + b)


def both_and_rank(a: int, b: int, participants: int) -> int:
    """a and b in float32, and a whole number: the client's rank, or how many clients have taken part."""
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


def half(a: int, b: int, participants: int) -> int:
    """a and b in turn, in float32: the mean over rounds."""
    return 2 * (a + b)


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
    "fedavgm": Traits(both, both, mean="factors", neutral={"server_beta1": 0.0}),
    "fedadagrad": Traits(both, both),
    "fedyogi": Traits(both, both),
    "fedadam": Traits(both, both),
    "fedex-lora": Traits(of_all, both, mean="products"),
    "fedrot-lora": Traits(both, both, neutral={"rotation": 0.0}),
    "rolora": Traits(both, half, mean="products"),
    "flexlora": Traits(both, both),
    "lora-fair": Traits(both, both, neutral={"fair_penalty": 1e9}),
    "fedsvd": Traits(both, only_b, mean="products"),
    "fedmomentum": Traits(of_all, both, mean="products"),
    "rest-of-world": Traits(both_and_rank, both),
    "dual-adapters": Traits(both, both),
    "local-only": Traits(nothing, nothing),
    "central": Traits(both, both, mean="factors", neutral={}),
}


EVERY = pytest.mark.parametrize("name", ALGORITHMS)


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


@pytest.mark.parametrize("name", [name for name, traits in TRAITS.items() if traits.mean])
def test_the_global_model_is_the_mean_that_the_method_takes(name):
    algorithm, server, rows = started(name)
    weights = np.array(WEIGHTS) if algorithm.weighting == "examples" else np.ones(K)
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
    after, _ = aggregated(algorithm, server, ups, WEIGHTS)
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
