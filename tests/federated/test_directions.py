"""Factors that begin at the principal directions of the weights: any algorithm, beside what is left of the weights."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.accounting.communication import round_messages
from devft_jax.config.methods import algorithm_of
from devft_jax.developmental import LayerMap
from devft_jax.errors import InputError
from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.algorithms import ALGORITHMS
from devft_jax.testing import check_algorithm
from tests.federated.harness import BASE, aggregated, init, participant, trained_messages
from tests.federated.records import OPTIONS, WEIGHTS, assert_same_model, first, noise, stage_of, still, trained, update
from tests.tiny import CONFIG

UNFIT = ("flora", "fedsa-lora", "dofit", "c2a", "hetlora", "federa", "flasc", "rest-of-world", "dual-adapters", "local-only")
FUSED = LayerMap(jnp.array([[0.9, 0.1, 0, 0], [0, 0, 0.5, 0.5]], jnp.float32), jnp.array([0, 0, 1, 1], jnp.int32))
IDENTITY = LayerMap.identity(CONFIG.layers)


@functools.cache
def begun(name: str, **changes) -> Algorithm:
    """An algorithm whose factors begin at the principal directions."""
    return algorithm_of(dataclasses.replace(OPTIONS, algorithm=name, initialization="pissa", **changes))


def test_fedit_from_principal_directions_is_federa():
    """Which is implemented by itself, and sends changes: through rounds, a stage of fused layers, and one of all layers."""
    views = {}
    for algorithm in (begun("fedit"), ALGORITHMS["federa"](OPTIONS)):
        full, rows = first(algorithm)
        found = []
        for layer_map in (FUSED, IDENTITY):
            server, stage_rows = stage_of(algorithm, full, rows, layer_map)
            found.append(algorithm.view(server))
            server = trained(algorithm, server, stage_rows)
            full = algorithm.transfer(full, server, layer_map, "copy")
            found += [algorithm.view(server), algorithm.view(full)]
        views[algorithm.name] = found
    for ours, federas in zip(views["fedit"], views["federa"], strict=True):
        assert_same_model(ours, federas, atol=1e-4)
    assert max(np.abs(added).max() for added in update(views["fedit"][-1]).values()) > 0.01


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name not in UNFIT])
def test_a_model_begins_as_the_base_at_the_largest_directions_of_its_weights(name):
    algorithm, plain = begun(name), ALGORITHMS[name](OPTIONS)
    full, rows = first(algorithm)
    server, rows = stage_of(algorithm, full, rows, IDENTITY)
    train, frozen = algorithm.start(participant(algorithm, server, rows[0]))
    adapter = algorithm.adapter(train, frozen)
    for added in update(adapter).values():
        np.testing.assert_allclose(added, 0.0, atol=1e-5)
    for projection, factors in adapter.lora.items():
        values = np.linalg.svd(np.asarray(getattr(BASE.blocks, projection)), compute_uv=False)[:, : OPTIONS.rank]
        product = 1.5 * np.asarray(factors.a, "f8") @ np.asarray(factors.b, "f8")
        np.testing.assert_allclose(np.linalg.svd(product, compute_uv=False)[:, : OPTIONS.rank], values, atol=1e-4)
    # Its messages are the algorithm's own.
    ours, theirs = (round_messages(each, CONFIG, CONFIG.layers) for each in (algorithm, plain))
    assert (ours.bytes_up, ours.bytes_down) == (theirs.bytes_up, theirs.bytes_down)


@pytest.mark.parametrize("name", ["fedit", *(pytest.param(each, marks=pytest.mark.slow) for each in ("rolora", "scaffold"))])
def test_it_keeps_the_laws_of_an_algorithm(name):
    check_algorithm(begun(name))


def test_changes_may_be_sent_through_a_channel():
    algorithm = begun("fedit", channel="int8")
    full, rows = first(algorithm)
    server, rows = stage_of(algorithm, full, rows, FUSED)
    for added in update(algorithm.view(server)).values():
        np.testing.assert_allclose(added, 0.0, atol=1e-5)
    after = trained(algorithm, server, rows)
    assert max(np.abs(added).max() for added in update(algorithm.view(after)).values()) > 0.01


def test_a_method_with_corrections_of_its_own_returns_all_that_it_learned():
    algorithm = begun("fedmomentum")
    full, rows = first(algorithm)
    server, stage_rows = stage_of(algorithm, full, rows, FUSED)
    ups, stage_rows = trained_messages(algorithm, server, stage_rows, move=noise(1))
    server, _ = aggregated(algorithm, server, ups, WEIGHTS)
    learned = update(algorithm.view(server))
    returned = update(algorithm.view(algorithm.transfer(full, server, FUSED, "copy")))
    for name, added in learned.items():
        np.testing.assert_allclose(returned[name], added[[0, 0, 1, 1]], atol=1e-5)
    # A stage that learns nothing changes nothing.
    again, stage_rows = stage_of(algorithm, full, rows, FUSED)
    ups, _ = trained_messages(algorithm, again, stage_rows, move=still)
    again, _ = aggregated(algorithm, again, ups, WEIGHTS)
    for added in update(algorithm.view(algorithm.transfer(full, again, FUSED, "copy"))).values():
        np.testing.assert_allclose(added, 0.0, atol=1e-5)


@pytest.mark.parametrize("name", UNFIT)
def test_algorithms_without_one_shared_adapter_are_refused(name):
    with pytest.raises(InputError, match=f"initialization pissa needs an algorithm .* {name} is none"):
        begun(name)


def test_what_else_is_refused():
    with pytest.raises(InputError, match="flexlora is none"):
        begun("flexlora", client_ranks=(4, 2))
    with pytest.raises(InputError, match="message_dtype bfloat16 would round the principal directions"):
        begun("fedit", message_dtype="bfloat16")
    with pytest.raises(InputError, match=r"rank 9 exceeds the 8 singular values of projection 'v', of which pissa"):
        init(begun("fedit", rank=9))
    assert begun("fedit") is algorithm_of(dataclasses.replace(OPTIONS, algorithm="fedit", initialization="pissa"))
