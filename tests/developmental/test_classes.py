"""Classes of clients: which layers they draw, with which chances, and the shapes of every growth that has them."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.developmental import DevFT, LayerMap, TopGrow
from devft_jax.developmental.classes import ClassShape, default_counts, drawn_layers, inclusion_probabilities
from devft_jax.developmental.growths.by_tier import ByTier, by_tier
from devft_jax.developmental.growths.fed_hello import FedHeLLo, clusters, pattern
from devft_jax.developmental.growths.fed_pilot import FedPilot
from devft_jax.developmental.growths.fedpruner import FedPruner
from devft_jax.developmental.growths.fedra import FedRA
from devft_jax.developmental.growths.legend import TopLayers
from devft_jax.developmental.knapsack import best_layers, cost_of

DRAWS = np.random.default_rng(0).uniform(size=(4000, 12))


def test_layers_are_drawn_with_the_chances_of_sequential_sampling():
    weights = pattern("bottleneck", 12)
    found = np.zeros(12)
    for draws in DRAWS:
        layers = drawn_layers(draws, 6, weights)
        assert (np.diff(layers) > 0).all()
        found[layers] += 1 / len(DRAWS)
    chances = inclusion_probabilities(weights, 6)
    assert chances.sum() == pytest.approx(6)
    np.testing.assert_allclose(found, chances, atol=0.03)


def test_inclusion_probabilities_equal_all_sequences_of_draws():
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    wanted = np.zeros(4)
    for first, second in itertools.permutations(range(4), 2):
        chance = weights[first] * weights[second] / (1 - weights[first])
        wanted[[first, second]] += chance
    np.testing.assert_allclose(inclusion_probabilities(weights, 2), wanted, atol=1e-4)
    np.testing.assert_allclose(inclusion_probabilities(np.ones(4), 3), 0.75)
    assert inclusion_probabilities(weights, 4).tolist() == [1] * 4


def test_fedra_draws_as_many_layers_as_the_class_has():
    growth = FedRA(counts=(2, 5, 12))
    assert [shape.drawn for shape in growth.classes(0, 12)] == [True, True, False]
    held = growth.class_map(1, 0, 12, [], DRAWS[0])
    assert held.selected().tolist() == drawn_layers(DRAWS[0], 5).tolist()
    assert (np.asarray(held.assign) >= 0).sum() == 5
    assert growth.class_map(2, 0, 12, [], None).is_identity
    assert growth.inclusion(1, 0, 12).tolist() == [5 / 12] * 12


def test_the_bottleneck_is_that_of_the_released_code():
    wanted = np.array([3, 3, 3, 2, 2, 1, 1, 1, 2, 3, 3, 3]) / 27
    np.testing.assert_allclose(pattern("bottleneck", 12), wanted)
    assert (np.diff(pattern("inverted", 9)) >= 0).all()
    assert (np.diff(pattern("triangle", 9)) <= 0).all()


def test_fed_hello_freezes_a_layer_by_its_number():
    """I40: without layer 1, layers 10 and above can still train."""
    growth = FedHeLLo(counts=(15,), form="uniform")
    draws = np.full(16, 0.5)
    draws[1] = 1e-9
    held = growth.class_map(0, 0, 16, [], draws)
    assert held.is_identity
    assert np.flatnonzero(~np.asarray(held.train)).tolist() == [1]
    assert growth.classes(0, 16) == (ClassShape(16, 15, picks=True, drawn=True),)


def test_fed_hello_prefers_layers_of_large_fisher_information():
    """I40: the order of the clusters is that of the values, whatever the layers' order."""
    values = np.array([5.0, 0.1, 1.0, 0.11, 6.0, 1.1])
    assert clusters(values).tolist() == [2, 0, 1, 0, 2, 1]
    growth = FedHeLLo(counts=(3,), form="fisher")
    assert not growth.measured
    growth = growth.prepared(lambda kind: values if kind == "fisher" else None)
    np.testing.assert_allclose(growth.probabilities(6) * 12, [3, 1, 2, 1, 3, 2])
    best = min(
        sum(float(((part - part.mean()) ** 2).sum()) for part in np.split(np.sort(values), cut))
        for cut in itertools.combinations(range(1, 6), 2)
    )
    own = sum(float(((part - part.mean()) ** 2).sum()) for part in (values[clusters(values) == k] for k in range(3)))
    assert own == pytest.approx(best)


def test_fedpruner_takes_one_layer_of_each_group_and_always_the_first():
    """I36: exactly as many layers as the class has, and the protected layer is never dropped."""
    groups = np.array([0, 0, 1, 1, 2, 2])
    similarity = np.where(groups[:, None] == groups, 0.99, 0.01) + 0.01 * np.eye(6)
    growth = FedPruner(counts=(3, 6)).prepared(lambda kind: similarity)
    chances = growth.inclusion(0, 0, 6)
    assert chances.tolist() == [1, 0, 0.5, 0.5, 0.5, 0.5]
    found = set()
    for draws in DRAWS[:50, :6]:
        layers = growth.class_map(0, 0, 6, [], draws).selected()
        assert sorted(groups[layers].tolist()) == [0, 1, 2]
        assert layers[0] == 0
        found.update(layers.tolist())
    assert found == {0, 2, 3, 4, 5}


def test_legend_has_top_layers_of_rising_rank():
    growth = TopLayers(counts=(2, 4), lowest=0.5)
    weak, strong = growth.classes(0, 4)
    assert (weak.layers, weak.bare, weak.depth) == (2, 2, 4)
    assert strong.ranks(8) == (4, 5, 7, 8)
    assert weak.ranks(8) == strong.ranks(8)[2:]
    assert growth.class_map(0, 0, 4, [], None).bare == 2
    assert TopLayers(counts=(2, 4)).classes(0, 4)[0].ranks(8) is None


def test_weak_classes_stay_at_an_earlier_stage():
    growth = by_tier(TopGrow((1, 2, 4)), True, 4)
    assert isinstance(growth, ByTier)
    assert [shape.layers for shape in growth.classes(0, 4)] == [1, 1, 1]
    assert [shape.layers for shape in growth.classes(2, 4)] == [1, 2, 4]
    maps = [LayerMap.top(4, 1), LayerMap.top(4, 2)]
    assert growth.class_map(0, 1, 4, maps, None) is maps[0]
    assert growth.class_map(2, 1, 4, maps, None) is maps[1]
    assert by_tier(growth, False, 4) is growth
    with pytest.raises(ValueError, match="by_tier needs the layers of every stage"):
        by_tier(dataclasses.replace(DevFT((2, 4)), eigengap=True), True, 4)


def test_counts_ascend_within_the_depth():
    assert default_counts(16) == (4, 8, 16)
    assert default_counts(2) == (1, 2)
    for counts in ((4, 4), (8, 4), (4, 17)):
        with pytest.raises(ValueError, match="class_layers"):
            FedRA(counts=counts).counts_in(16)


def test_a_class_without_draws_trains_every_row():
    assert np.asarray(jnp.asarray(FedRA(counts=(4,)).class_map(0, 0, 4, [], None).train)).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 3)), min_size=1, max_size=8), st.floats(0, 2), st.floats(0, 20))
def test_the_knapsack_is_within_its_budget_and_equals_brute_force(layers, activation, budget):
    """I41: with what the lowest trained layer costs, which is not additive."""
    values, costs = np.array(layers).T
    sets = [
        np.array(some) for size in range(1, len(values) + 1) for some in itertools.combinations(range(len(values)), size)
    ]
    within = [some for some in sets if cost_of(some, costs, activation) <= budget]
    best = max((float(values[some].sum()) for some in within), default=0.0)
    found = best_layers(values, costs, activation, budget)
    assert cost_of(found, costs, activation) <= budget * (1 + 1e-9)
    assert values[found].sum() == pytest.approx(best, abs=1e-9)


def test_fed_pilot_trades_the_number_of_layers_for_depth():
    values = np.array([0, 0, 9, 0, 1, 1, 1, 1.0])
    shape = FedPilot(counts=(5,), layer_cost=0.5).classes(0, 8)[0]
    assert (shape.layers, shape.trained, shape.frozen) == (8, 5, 1)
    growth = FedPilot(counts=(5,), layer_cost=0.5).prepared(lambda kind: values)
    # Six layers deep at 1 each, and three layers at a half: as much as the top five.
    assert np.flatnonzero(growth.class_map(0, 0, 8, [], None).train).tolist() == [2, 4, 5]
    assert np.flatnonzero(
        FedPilot(counts=(2,), layer_cost=0.5, fisher=tuple(values)).class_map(0, 0, 8, [], None).train
    ).tolist() == [6, 7]
