"""FedAvgM, FedAdagrad, FedYogi and FedAdam against NumPy, round after round, and where they meet FedIT."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.accounting.communication import round_messages
from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithm import Share
from devft_jax.federated.algorithms import ALGORITHMS, MethodConfig
from tests.federated.harness import (
    SEVEN,
    TWO,
    aggregated,
    assert_close,
    assert_identical,
    changed_to,
    fedit_with,
    init,
    largest_change,
    participant,
    server_with,
    trained_messages,
    weighted_mean,
)
from tests.federated.test_fedit import LLAMA2_7B, LLAMA2_13B, LLAMA31_8B
from tests.tiny import random_adapter

NAMES = ("fedavgm", "fedadagrad", "fedyogi", "fedadam")
ADAPTIVE = NAMES[1:]
ETA, BETA1, BETA2, TAU = 0.02, 0.8, 0.95, 0.01
WEIGHTS = [3.0, 1.0, 7.0]


def options_with(options=SEVEN, **changes):
    values = {"server_learning_rate": ETA, "server_beta1": BETA1, "server_beta2": BETA2, "server_tau": TAU, **changes}
    return dataclasses.replace(options, **values)


def made(name, options=SEVEN, **changes):
    return ALGORITHMS[name](options_with(options, **changes))


def begun(algorithm, options=SEVEN):
    """The first state, with an adapter in the middle of training."""
    return init(algorithm).replace(adapter=server_with(options))


def uploads(seed, count=3, options=SEVEN):
    return [random_adapter(options, seed=10 * seed + index).lora for index in range(count)]


def plain_rule(name, update, m, v, age, second_moment="momentum", momentum_form="average"):
    """One entry's or array's step, in float64: (step, m, v)."""
    if name == "fedadagrad":
        v = v + update**2
        return ETA * update / (np.sqrt(v) + TAU), m, v
    gain = 1 - BETA1 if momentum_form == "average" or name != "fedavgm" else 1.0
    m = update if age == 0 else BETA1 * m + gain * update
    if name == "fedavgm":
        return m, m, v
    square = (m if second_moment == "momentum" else update) ** 2
    yogi = v - (1 - BETA2) * square * np.sign(v - square)
    v = BETA2 * v + (1 - BETA2) * square if name == "fedadam" else yogi
    return ETA * m / (np.sqrt(v) + TAU), m, v


CASES = [
    *((name, {}) for name in NAMES),
    ("fedavgm", {"momentum_form": "sum"}),
    ("fedyogi", {"second_moment": "update"}),
    ("fedadam", {"second_moment": "update"}),
]


@pytest.mark.parametrize(("name", "forms"), CASES)
def test_rounds_follow_the_rule(name, forms):
    algorithm = made(name, **forms)
    server = begun(algorithm)
    for leaf in jax.tree.leaves(server.second):
        np.testing.assert_allclose(leaf, TAU**2, rtol=1e-6)
    weights = WEIGHTS if name == "fedavgm" else [1.0] * 3
    expected = jax.tree.map(lambda leaf: np.array(leaf, np.float64), server.adapter.lora)
    moments = jax.tree.map(lambda leaf: (np.zeros(leaf.shape), np.full(leaf.shape, TAU**2)), expected)
    for age in range(3):
        trees = uploads(age)
        mean = weighted_mean(trees, weights)
        server, metrics = aggregated(algorithm, server, changed_to(trees, server.adapter.lora), weights)
        leaves, structure = jax.tree.flatten(expected)
        steps, new = [], []
        for leaf, target, (m, v) in zip(leaves, jax.tree.leaves(mean), structure.flatten_up_to(moments), strict=True):
            step, m, v = plain_rule(name, target - leaf, m, v, age, **forms)
            steps.append(step)
            new.append((m, v))
        expected = structure.unflatten([leaf + step for leaf, step in zip(leaves, steps, strict=True)])
        moments = structure.unflatten(new)
        assert_close(server.adapter.lora, expected, atol=2e-5)
        assert metrics["update_norm"] == pytest.approx(sum(np.sum(step**2) for step in steps) ** 0.5, rel=1e-4)
        for index, found in enumerate((server.first, server.second)):
            if found:
                wanted = structure.unflatten([pair[index] for pair in new])
                assert_close(found, wanted, atol=1e-4)
        assert server.age == age + 1


@pytest.mark.parametrize("name", NAMES)
def test_who_weighs_what(name):
    assert made(name).weighting == ("examples" if name == "fedavgm" else "uniform")


@pytest.mark.parametrize("forms", [{}, {"momentum_form": "sum"}])
def test_without_momentum_fedavgm_is_fedit(forms):
    algorithm = made("fedavgm", server_beta1=0.0, **forms)
    server, federated = begun(algorithm), server_with(SEVEN)
    for age in range(2):
        server, _ = aggregated(algorithm, server, changed_to(uploads(age), server.adapter.lora), WEIGHTS)
        federated, _ = aggregated(fedit_with(SEVEN), federated, changed_to(uploads(age), federated.lora), WEIGHTS)
        assert_close(server.adapter, federated, atol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_clients_that_learn_nothing_change_nothing(name, dtype):
    algorithm = made(name, message_dtype=dtype)
    server = begun(algorithm)
    before = server
    for _ in range(3):
        ups, _ = trained_messages(algorithm, server, [{}] * 4, move=lambda who, leaf: leaf)
        server, metrics = aggregated(algorithm, server, ups, [1.0] * 4)
        assert metrics["update_norm"] == 0
    assert_identical(server.adapter, before.adapter)
    assert_identical(server.first, before.first)
    assert all(np.all(leaf >= 0) for leaf in jax.tree.leaves(server.second))


@pytest.mark.parametrize("name", ["fedyogi", "fedadam"])
@pytest.mark.parametrize("second_moment", ["momentum", "update"])
@settings(max_examples=25)
@given(updates=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=6))
def test_the_second_moment_is_never_negative(name, second_moment, updates):
    algorithm = made(name, TWO, second_moment=second_moment)
    one = jax.tree.map(lambda leaf: leaf[:1, :1, :1], server_with(TWO).lora)
    server = begun(algorithm, TWO)
    cut = lambda tree: jax.tree.map(lambda leaf: leaf[:1, :1, :1], tree)  # noqa: E731
    server = server.replace(adapter=server.adapter.replace(lora=one), first=cut(server.first), second=cut(server.second))
    for update in updates:
        up = jax.tree.map(lambda leaf, by=update: jnp.full_like(leaf, by), server.adapter.lora)
        server, metrics = aggregated(algorithm, server, [up], [1.0])
        assert np.isfinite(metrics["update_norm"])
        assert all(np.all(leaf >= 0) for leaf in jax.tree.leaves(server.second))


def test_with_a_large_tau_fedadam_is_fedavgm_scaled():
    tau = 1e4
    adam, averaging = made("fedadam", server_tau=tau, server_learning_rate=tau), made("fedavgm")
    first, second = begun(adam), begun(averaging)
    for age in range(3):
        # The same updates for both, wherever they are.
        moves = uploads(age)
        steps = []
        for algorithm, server in ((adam, first), (averaging, second)):
            after, _ = aggregated(algorithm, server, moves, [1.0] * 3)
            steps.append(optax.tree.sub(after.adapter.lora, server.adapter.lora))
            first, second = (after, second) if algorithm is adam else (first, after)
        # Their momenta are one, and the denominator, sqrt(v) + tau, no longer depends on the entry.
        assert_close(first.first, second.first, atol=1e-4)
        assert_close(steps[0], optax.tree.scale(1 / (1 + BETA2 ** ((age + 1) / 2)), steps[1]), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_begins_anew_and_returns_only_the_adapter(name):
    algorithm = made(name)
    full = begun(algorithm)
    trained, _ = aggregated(algorithm, full, uploads(1), WEIGHTS)
    layers = LayerMap(
        fuse=jnp.array([[0.9, 0.1, 0, 0], [0, 0, 0.5, 0.5]], jnp.float32), assign=jnp.array([0, 0, 1, 1], jnp.int32)
    )
    stage = algorithm.submodel(trained, layers)
    assert stage.age == 0
    for moment, start in ((stage.first, 0), (stage.second, TAU**2)):
        for leaf, fused in zip(*map(jax.tree.leaves, (moment, stage.adapter.lora if moment else {})), strict=True):
            np.testing.assert_allclose(leaf, np.full(fused.shape, start), rtol=1e-6)
    back = algorithm.transfer(full, stage, layers, "copy")
    assert_identical(dataclasses.replace(back, adapter=full.adapter), full)
    assert largest_change(back.adapter.lora, full.adapter.lora) > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_rounded_messages_sum_in_float32(name):
    algorithm = made(name, message_dtype="bfloat16")
    server = begun(algorithm)
    at_start = participant(algorithm, server)
    train, _ = algorithm.start(at_start)
    up, _ = algorithm.finish(at_start, train)
    assert {leaf.dtype for leaf in jax.tree.leaves((at_start.down, up))} == {jnp.dtype("bfloat16")}
    sums = algorithm.contribution(up, Share(jnp.float32(2.0), jnp.int32(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(sums)} == {jnp.dtype("float32")}
    after, _ = aggregated(algorithm, server, [up], [1.0])
    assert {leaf.dtype for leaf in jax.tree.leaves(after.adapter.lora)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", [LLAMA2_7B, LLAMA31_8B, LLAMA2_13B], ids=["llama2-7b", "llama3.1-8b", "llama2-13b"])
def test_messages_are_as_large_as_fedits(name, model):
    options = MethodConfig(rank=32, alpha=64.0, targets=("q", "v"), message_dtype="bfloat16")
    ours, fedits = (round_messages(ALGORITHMS[each](options), model, model.layers) for each in (name, "fedit"))
    assert (ours.bytes_down, ours.bytes_up) == (fedits.bytes_down, fedits.bytes_up)
