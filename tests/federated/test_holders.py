"""Aggregation over clients that hold different layers: the three rules, ranks, fused rows and what does not change."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.developmental import LayerMap
from devft_jax.federated.aggregation import WeightedSum
from devft_jax.federated.holders import add_group, cut, kept_where_nobody_holds, nothing_held, rank_mask, sum_for_all
from devft_jax.federated.round.classes import sent_bytes
from devft_jax.models.adapter import LoraFactors

LAYERS, RANK = 4, 3
SERVER = {"q": LoraFactors(a=jnp.ones((LAYERS, 5, RANK)), b=jnp.ones((LAYERS, RANK, 2)))}
ALL = np.ones(LAYERS, np.float32)


def a_change(rows, rank, seed):
    rng = np.random.default_rng(seed)
    return {"q": LoraFactors(a=rng.normal(size=(rows, 5, rank)), b=rng.normal(size=(rows, rank, 2)))}


def stepped(clients, rule="active", mode="copy", server=SERVER):
    """The step and the held weights for clients (weight, map, ranks, change), each in a group of its own."""
    held = nothing_held(server, {"q": np.zeros((1, 2))})
    for weight, layer_map, ranks, change, *inclusion in clients:
        other = {"q": np.asarray(change["q"].b.sum(axis=1), np.float32)}
        sums = jax.tree.map(
            lambda leaf, weight=weight: jnp.float32(weight) * jnp.asarray(leaf, jnp.float32), (change, other)
        )
        held = add_group(
            held,
            server,
            WeightedSum(sums, jnp.float32(weight)),
            layer_map,
            jnp.asarray(inclusion[0] if inclusion else ALL, jnp.float32),
            ranks=ranks,
            rule=rule,
            mode=mode,
            selects=layer_map.selected() is not None,
        )
    return sum_for_all(held, rule).mean(), held


def plain(clients, rule):
    """The same in loops over layers and directions, for maps that select layers."""
    step = {"a": np.zeros((LAYERS, 5, RANK)), "b": np.zeros((LAYERS, RANK, 2))}
    for layer, direction in itertools.product(range(LAYERS), range(RANK)):
        top, bottom = {"a": np.zeros(5), "b": np.zeros(2)}, 0.0
        for weight, layer_map, ranks, change, *inclusion in clients:
            row = int(layer_map.assign[layer])
            holds = row >= 0 and bool(layer_map.train[row]) and (ranks is None or direction < ranks[row])
            share = inclusion[0][layer] if rule == "ht" and inclusion and holds else 1.0
            if holds:
                top["a"] += weight * np.asarray(change["q"].a)[row, :, direction] / share
                top["b"] += weight * np.asarray(change["q"].b)[row, direction] / share
            bottom += weight if holds or rule != "active" else 0.0
        if bottom:
            step["a"][layer, :, direction], step["b"][layer, direction] = top["a"] / bottom, top["b"] / bottom
    return step


@st.composite
def some_clients(draw):
    """Up to four clients with two rows each, of shapes that share few programs."""
    clients = []
    for number in range(draw(st.integers(1, 4))):
        layers = draw(st.lists(st.integers(0, LAYERS - 1), min_size=2, max_size=2, unique=True))
        layer_map = LayerMap.of_layers(LAYERS, sorted(layers))
        train = draw(st.lists(st.booleans(), min_size=len(layers), max_size=len(layers)))
        layer_map = dataclasses.replace(layer_map, train=jnp.asarray(np.array([*train[:-1], True])))
        ranks = draw(st.sampled_from((None, (1, 2))))
        change = a_change(len(layers), RANK if ranks is None else max(ranks), number)
        if ranks is not None:
            change = jax.tree.map(np.asarray, cut(change, ranks))
        clients.append((draw(st.floats(0.5, 5.0)), layer_map, ranks, change, np.linspace(0.3, 1.0, LAYERS)))
    return clients


@settings(max_examples=15, deadline=None)
@given(some_clients(), st.sampled_from(("active", "all", "ht")), st.randoms(use_true_random=False))
def test_every_rule_is_what_it_says_and_does_not_depend_on_the_order(clients, rule, random):
    """I32: also for the directions of ranks, and with rows that do not train."""
    (step, _), held = stepped(clients, rule)
    wanted = plain(clients, rule)
    np.testing.assert_allclose(step["q"].a, wanted["a"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(step["q"].b, wanted["b"], rtol=1e-4, atol=1e-5)
    random.shuffle(clients)
    (again, _), _ = stepped(clients, rule)
    np.testing.assert_allclose(step["q"].a, again["q"].a, rtol=1e-5, atol=1e-6)
    nobody = np.asarray(held.weight) == 0
    assert not np.asarray(step["q"].b)[nobody].any()


def test_active_is_the_mean_of_all_or_the_row_of_the_only_holder():
    """I32: with everybody holding everything the sum is FedIT's, bit for bit."""
    whole = LayerMap.identity(LAYERS)
    clients = [(3.0, whole, None, a_change(LAYERS, RANK, 1)), (5.0, whole, None, a_change(LAYERS, RANK, 2))]
    total = sum(np.float32(weight) * np.float32(change["q"].a) for weight, _, _, change in clients)
    (step, _), held = stepped(clients)
    np.testing.assert_array_equal(sum_for_all(held, "active").total[0]["q"].a, total)
    np.testing.assert_allclose(step["q"].a, total / np.float32(8), rtol=1e-6)
    alone = [(3.0, LayerMap.of_layers(LAYERS, [2]), None, a_change(1, RANK, 3))]
    (step, _), _ = stepped([*alone, (5.0, LayerMap.of_layers(LAYERS, [0]), None, a_change(1, RANK, 4))])
    np.testing.assert_allclose(step["q"].a[2], alone[0][3]["q"].a[0], rtol=1e-6)
    assert not np.asarray(step["q"].a)[[1, 3]].any()


def test_ht_is_unbiased_over_all_draws():
    """I33: with changes that do not depend on the draw, the mean over all draws of 2 of 4 layers is full participation."""
    full = [a_change(LAYERS, RANK, number) for number in range(2)]
    chances = np.full(LAYERS, 0.5)
    draws = list(itertools.combinations(range(LAYERS), 2))
    mean = np.zeros((LAYERS, 5, RANK))
    for first, second in itertools.product(draws, draws):
        clients = [
            (
                weight,
                LayerMap.of_layers(LAYERS, rows),
                None,
                jax.tree.map(lambda leaf, r=rows: leaf[list(r)], change),
                chances,
            )
            for weight, rows, change in zip((1.0, 3.0), (first, second), full, strict=True)
        ]
        mean += np.asarray(stepped(clients, "ht")[0][0]["q"].a) / len(draws) ** 2
    np.testing.assert_allclose(mean, (full[0]["q"].a + 3 * full[1]["q"].a) / 4, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["copy", "delta", "anchor_only", "anchor_delta"])
def test_a_fused_row_returns_to_the_layers_of_its_group(mode):
    rng = np.random.default_rng(0)
    server = {"q": LoraFactors(a=rng.normal(size=(LAYERS, 5, RANK)), b=rng.normal(size=(LAYERS, RANK, 2)))}
    fuse = np.array([[0.75, 0.25, 0, 0], [0, 0, 0.5, 0.5]], np.float32)
    layer_map = LayerMap(jnp.asarray(fuse), jnp.array([0, 0, 1, 1], jnp.int32))
    change = a_change(2, RANK, 5)
    (step, _), held = stepped([(2.0, layer_map, None, change)], mode=mode, server=server)
    row = np.einsum("gl,lir->gir", fuse, server["q"].a) + change["q"].a
    for layer in range(LAYERS):
        own, group = server["q"].a[layer], layer // 2
        wanted = {
            "copy": row[group] - own,
            "delta": change["q"].a[group],
            "anchor_only": row[group] - own if layer % 2 == 0 else 0 * own,
            "anchor_delta": row[group] - server["q"].a[2 * group],
        }[mode]
        np.testing.assert_allclose(step["q"].a[layer], wanted, rtol=1e-4, atol=1e-5)
    assert (np.asarray(held.weight)[[1, 3]] == 0).all() == (mode == "anchor_only")


def test_what_nobody_holds_keeps_its_moments_bit_for_bit():
    """I31 on the server: a step of an optimiser would decay the moments of a layer without changes."""
    old = {"first": SERVER, "age": jnp.int32(3)}
    new = {"first": jax.tree.map(lambda leaf: 0.9 * leaf, SERVER), "age": jnp.int32(4)}
    weight = jnp.asarray(rank_mask((3, 1), 2, RANK)[[0, 0, 1, 1]] * np.array([[1], [0], [1], [1]]), jnp.float32)
    kept = kept_where_nobody_holds(new, old, weight)
    assert kept["age"] == 4
    wanted = np.where(np.asarray(weight) > 0, np.float32(0.9), np.float32(1.0))
    np.testing.assert_array_equal(kept["first"]["q"].a[:, 0], wanted)
    np.testing.assert_array_equal(kept["first"]["q"].b[..., 0], wanted)


def test_ranks_are_cut_and_stay_zero():
    own = cut(SERVER, (2, 1, 2, 1))
    assert own["q"].a.shape == (LAYERS, 5, 2)
    assert not np.asarray(own["q"].a)[1, :, 1].any()
    assert not np.asarray(own["q"].b)[3, 1].any()
    assert np.asarray(own["q"].b)[2].all()


def test_a_message_has_the_bytes_of_its_rows():
    """I38: rows that are sent, each at its own rank, and four bytes for every number."""
    row = 4 * RANK * (5 + 2)
    assert sent_bytes(SERVER, range(LAYERS), None, numbers=False) == LAYERS * row
    assert sent_bytes(SERVER, [1, 3], None, numbers=True) == 2 * row + 8
    cut_server = cut(SERVER, (2, 1, 2, 1))
    assert sent_bytes(cut_server, range(LAYERS), (2, 1, 2, 1), numbers=False) == 6 * row // RANK
