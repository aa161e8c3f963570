"""Factors that begin at a gradient's directions: against NumPy, and for any algorithm beside what is left of the weights."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.accounting.communication import round_messages
from devft_jax.config.methods import algorithm_of
from devft_jax.developmental import LayerMap, fuse
from devft_jax.errors import InputError
from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.algorithms import ALGORITHMS
from devft_jax.federated.gradient_directions import gradient_factors
from devft_jax.testing import check_algorithm
from tests.federated.harness import BASE, init, participant
from tests.federated.records import OPTIONS, first, trained, update
from tests.federated.test_directions import FUSED, IDENTITY, UNFIT
from tests.tiny import CONFIG

# Twice the rank is the number of directions of the narrowest projection's gradient.
RANK = min(min(CONFIG.projection_shape(name)) for name in OPTIONS.targets) // 2
SCALE = 1.5


@functools.cache
def begun(name: str, **changes) -> Algorithm:
    """An algorithm whose factors begin at a gradient's directions."""
    options = {"rank": RANK, "alpha": SCALE * RANK, "algorithm": name, "initialization": "lora-ga", **changes}
    return algorithm_of(dataclasses.replace(OPTIONS, **options))


def some_gradient(layers: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A gradient of every adapted projection."""
    rng = np.random.default_rng(seed)
    return {name: np.float32(rng.normal(size=(layers, *CONFIG.projection_shape(name)))) for name in OPTIONS.targets}


def stage_of(algorithm, full, rows, layer_map: LayerMap, gradient):
    """A stage as it begins with this gradient: the server's state and the participants' rows."""
    base = BASE.replace(blocks=fuse(layer_map, BASE.blocks))
    server = algorithm.enter(algorithm.orient(algorithm.submodel(full, layer_map), gradient), base)
    return server, [algorithm.submodel_row(row, layer_map) for row in rows]


@pytest.mark.parametrize("shape", [(7, 10), (10, 7), (6, 6)])
def test_the_factors_are_those_of_numpys_decomposition(shape):
    gradient, rank = np.random.default_rng(1).normal(size=(2, *shape)), 3
    found = gradient_factors(jnp.float32(gradient), rank)
    for layer, matrix in enumerate(gradient):
        left, values, right = np.linalg.svd(matrix)
        a, b = np.asarray(found.a[layer], "f8"), np.asarray(found.b[layer], "f8")
        size = shape[1] ** 0.25 / 4
        for column, wanted in zip(a.T, left.T[:rank], strict=True):
            np.testing.assert_allclose(column, size * wanted * np.sign(wanted[np.argmax(np.abs(wanted))]), atol=1e-4)
        for row, wanted in zip(b, right[rank : 2 * rank], strict=True):
            np.testing.assert_allclose(row, size * wanted * np.sign(wanted[np.argmax(np.abs(wanted))]), atol=1e-4)
        # To first order, a step of both factors along their gradients changes the weight by the best approximation of the
        # weight's own gradient that has rank 2 r, at a scale.
        best = (left[:, : 2 * rank] * values[: 2 * rank]) @ right[: 2 * rank]
        np.testing.assert_allclose(a @ (a.T @ matrix) + (matrix @ b.T) @ b, size**2 * best, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name not in UNFIT])
def test_a_model_begins_as_the_base_at_the_gradients_directions(name):
    algorithm = begun(name)
    full, rows = first(algorithm)
    gradient = some_gradient(CONFIG.layers)
    server, rows = stage_of(algorithm, full, rows, IDENTITY, gradient)
    train, frozen = algorithm.start(participant(algorithm, server, rows[0]))
    adapter = algorithm.adapter(train, frozen)
    for added in update(adapter).values():
        np.testing.assert_allclose(added, 0.0, atol=1e-5)
    for projection, factors in adapter.lora.items():
        wanted = gradient_factors(jnp.asarray(gradient[projection]), RANK)
        np.testing.assert_allclose(
            np.asarray(factors.a, "f8") @ np.asarray(factors.b, "f8"),
            np.asarray(wanted.a, "f8") @ np.asarray(wanted.b, "f8"),
            atol=1e-5,
        )
    # Its messages are the algorithm's own.
    plain = ALGORITHMS[name](dataclasses.replace(OPTIONS, rank=RANK))
    ours, theirs = (round_messages(each, CONFIG, CONFIG.layers) for each in (algorithm, plain))
    assert (ours.bytes_up, ours.bytes_down) == (theirs.bytes_up, theirs.bytes_down)


@pytest.mark.parametrize("channel", ["none", "int8"])
def test_only_what_a_stage_has_learned_returns(channel):
    algorithm = begun("fedit", channel=channel)
    full, rows = first(algorithm)
    for seed, layer_map in enumerate((FUSED, IDENTITY)):
        layers = len(layer_map.fuse)
        before = update(algorithm.view(full))
        server, stage_rows = stage_of(algorithm, full, rows, layer_map, some_gradient(layers, seed))
        began = update(algorithm.view(server))
        for name, added in began.items():
            np.testing.assert_allclose(added, fuse(layer_map, np.float32(before[name])), atol=1e-5)
        server = trained(algorithm, server, stage_rows)
        learned = update(algorithm.view(server))
        assert max(np.abs(learned[name] - began[name]).max() for name in learned) > 0.01
        full = algorithm.transfer(full, server, layer_map, "copy")
        for name, added in update(algorithm.view(full)).items():
            groups = np.asarray(layer_map.assign)
            np.testing.assert_allclose(added - before[name], (learned[name] - began[name])[groups], atol=1e-5)


def test_it_keeps_the_laws_of_an_algorithm_also_where_no_gradient_is_measured():
    check_algorithm(begun("fedit"))
    algorithm = begun("fedmomentum")
    full, rows = first(algorithm)
    server = algorithm.enter(algorithm.submodel(full, IDENTITY), BASE)
    server = trained(algorithm, server, [algorithm.submodel_row(row, IDENTITY) for row in rows])
    for name, added in update(algorithm.view(algorithm.transfer(full, server, IDENTITY, "copy"))).items():
        np.testing.assert_allclose(added, update(algorithm.view(server))[name], atol=1e-5)


@pytest.mark.parametrize("name", UNFIT)
def test_algorithms_without_one_shared_adapter_are_refused(name):
    with pytest.raises(InputError, match=f"initialization lora-ga needs an algorithm .* {name} is none"):
        begun(name)


def test_what_else_is_refused():
    with pytest.raises(InputError, match=r"bfloat16 would round the gradient's directions.* use --message-dtype float32\."):
        begun("fedit", message_dtype="bfloat16")
    with pytest.raises(InputError, match=f"rank {RANK + 1} .* uses {2 * RANK + 2} directions .* use rank {RANK} or below"):
        init(begun("fedit", rank=RANK + 1))
