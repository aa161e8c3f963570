import dataclasses
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.developmental import (
    GROWTHS,
    DevFT,
    EndToEnd,
    LayerMap,
    ProgFed,
    SkipGrow,
    StageShape,
    TopGrow,
    fuse,
    inherit,
    layer_gram,
    layer_map,
    layer_similarity,
    make_growth,
    next_stage,
    planned_depths,
    planned_stages,
    proposed_rounds,
    streaming,
    transition_gap,
    wants_measure,
)
from devft_jax.developmental.layer_map import check_layer_map
from devft_jax.developmental.options import GrowthOptions
from tests.developmental.weights import assert_trees_equal, stack

LAYERS = 8
KEY = jax.random.key(3)


@pytest.fixture
def tree():
    return (stack(0, LAYERS), stack(1, LAYERS))


@pytest.fixture
def reads(monkeypatch):
    """Leaves read so far."""
    seen = []
    gram = streaming.gram
    monkeypatch.setattr(streaming, "gram", lambda leaf: seen.append(leaf) or gram(leaf))
    return seen


class Prefixes:
    """A growth as a user would write one: the first 2, then the first 4 layers, while the loss falls."""

    def next(self, stage, tree, history, key):
        if stage == 2 or (history and history[-1]["loss"] > 1):
            return None
        depth = (2, 4)[stage]
        assign = jnp.where(jnp.arange(LAYERS) < depth, jnp.arange(LAYERS), -1)
        return LayerMap(jnp.eye(depth, LAYERS), assign)


def test_devft_grows_through_its_capacities_and_stops(tree):
    growth = DevFT((2, 4, 8))
    maps = [growth.next(stage, tree, (), KEY) for stage in range(4)]
    assert [m and m.num_groups for m in maps] == [2, 4, 8, None]
    assert maps[2].is_identity
    assert planned_depths(growth, LAYERS) == (2, 4, 8)


def test_devft_is_layer_map_with_its_choices(tree):
    def base(path):
        return path.startswith("[0]")

    growth = DevFT((3,), grouping="dglg", fusion="r_one", select=base)
    expected = layer_map(tree, 3, fusion="r_one", select=base, key=KEY)
    assert_trees_equal(growth.next(0, tree, (), KEY), expected)
    even = DevFT((4,), grouping="even_blocks", beta="auto").next(0, tree, (), KEY)
    assert even.assign.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_widest_gap_chooses_the_depth_within_its_window():
    clear = np.kron(np.eye(3, dtype=np.float32), np.ones((1, 4), np.float32))[[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]]
    tree = {"weight": clear}
    growth = DevFT((4, 12), eigengap=True)
    assert growth.next(0, tree, (), KEY).num_groups == 3
    assert growth.next(0, tree, (), KEY).assign.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert growth.next(1, tree, (), KEY).is_identity
    assert growth.next(2, tree, (), KEY) is None
    assert planned_depths(growth, 12) is None
    assert proposed_rounds(growth, 7, 12) == (3, 4)
    assert DevFT((5, 12)).next(0, tree, (), KEY).num_groups == 5


def test_every_named_growth_says_what_it_is():
    for name, kind in GROWTHS.items():
        assert all((kind.reference, kind.message, kind.state))
        growth = make_growth(GrowthOptions(growth=name), LAYERS)
        assert hash(growth) == hash(make_growth(GrowthOptions(growth=name), LAYERS))
        assert sum(proposed_rounds(growth, 12, LAYERS)) == 12


def test_end_to_end_is_one_stage_of_everything(tree):
    growth = EndToEnd()
    assert growth.next(0, tree, (), KEY).is_identity
    assert growth.next(1, tree, (), KEY) is None
    assert planned_depths(growth, LAYERS) == (LAYERS,)


def test_progfed_is_prefixes_whose_last_is_the_model_itself(tree):
    growth = ProgFed(blocks=4)
    maps = [growth.next(stage, tree, (), KEY) for stage in range(5)]
    assert [found and found.num_groups for found in maps] == [2, 4, 6, 8, None]
    assert maps[1].assign.tolist() == [0, 1, 2, 3, -1, -1, -1, -1]
    assert maps[1].selected().tolist() == [0, 1, 2, 3]
    assert all(bool(found.train.all()) for found in maps[:4])
    assert_trees_equal(maps[3], LayerMap.identity(LAYERS))
    assert planned_depths(growth, LAYERS) == (2, 4, 6, 8)


def test_progfed_warms_its_newest_block_up():
    growth = ProgFed(blocks=2, schedule="equal", warmup_rounds=3)
    assert growth.stage_rounds(9, LAYERS) == (3, 3, 3)
    warm = growth.stage_map(1, LAYERS)
    assert warm.train.tolist() == [False] * 4 + [True] * 4
    assert planned_stages(growth, LAYERS) == (
        StageShape(4, 4, 0, picks=True),
        StageShape(8, 4, 4, picks=True),
        StageShape(8, 8, 0, picks=True),
    )


def test_layers_above_a_prefix_are_neither_run_nor_changed(tree):
    stage = ProgFed(blocks=2).stage_map(0, LAYERS)
    poisoned = jax.tree.map(lambda leaf: jnp.asarray(leaf).at[4:].set(jnp.nan), tree)
    small = fuse(stage, poisoned)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(small))
    after = inherit(stage, jax.tree.map(lambda leaf: leaf + 1, fuse(stage, tree)), tree)
    assert_trees_equal(*(jax.tree.map(lambda leaf: np.asarray(leaf)[4:], each) for each in (after, tree)))


def test_top_grow_is_the_model_of_which_the_top_learns(tree):
    growth = TopGrow((2, 8))
    first, second = (growth.next(stage, tree, (), KEY) for stage in range(2))
    assert not first.is_identity
    assert first.runs_base
    assert (first.bare, first.depth, first.selected().tolist()) == (6, LAYERS, [6, 7])
    assert next_stage(growth, 0, tree, (), KEY).similarity is None
    assert_trees_equal(second, LayerMap.identity(LAYERS))
    assert growth.next(2, tree, (), KEY) is None
    assert planned_stages(growth, LAYERS) == (StageShape(2, 2, bare=6, picks=True), StageShape(8, 8, picks=True))
    learned = inherit(first, jax.tree.map(lambda leaf: leaf + 1, fuse(first, tree)), tree)
    for after, before in zip(jax.tree.leaves(learned), jax.tree.leaves(tree), strict=True):
        np.testing.assert_array_equal(after[:6], before[:6])
        np.testing.assert_array_equal(after[6:], before[6:] + 1)


INFLUENCE = (0.9, 0.1, 0.4, 0.4, 0.2, 0.3, 0.05, 0.6)


def test_skip_grow_takes_the_ends_and_then_the_layers_of_most_influence():
    growth = SkipGrow((2, 4, 6, 8), INFLUENCE)
    maps = [growth.stage_map(stage, LAYERS) for stage in range(4)]
    chosen = [found.selected().tolist() for found in maps]
    assert chosen == [[0, 7], [0, 2, 3, 7], [0, 2, 3, 4, 5, 7], list(range(8))]
    assert maps[3].is_identity
    assert maps[1].assign.tolist() == [0, -1, 1, 2, -1, -1, -1, 3]
    assert growth.stage_map(4, LAYERS) is None
    assert SkipGrow((1, 8), INFLUENCE).stage_map(0, LAYERS).selected().tolist() == [0]


@given(st.lists(st.floats(0, 2, width=32), min_size=1, max_size=12), st.data())
def test_selections_are_nested_and_hold_the_first_and_last(influence, data):
    layers = len(influence)
    capacities = sorted(data.draw(st.sets(st.integers(1, layers), min_size=1)))
    growth = SkipGrow(tuple(capacities), tuple(influence))
    chosen = [set(growth.selected(count)) for count in capacities]
    assert [len(each) for each in chosen] == capacities
    assert all(before < after for before, after in pairwise(chosen))
    assert all(0 in each and (len(each) == 1 or layers - 1 in each) for each in chosen)


def test_only_a_growth_without_its_figures_wants_a_measure():
    assert wants_measure(SkipGrow((2, 8)))
    assert not wants_measure(SkipGrow((2, 8), INFLUENCE))
    assert not wants_measure(SkipGrow((2, 8)).prepared(lambda: np.array(INFLUENCE)))
    assert not wants_measure(EndToEnd())


def test_skip_grow_measures_once_and_is_planned_before():
    asked = []

    def measure():
        asked.append(True)
        return np.array(INFLUENCE)

    growth = SkipGrow((2, 8))
    with pytest.raises(ValueError, match="has not measured its layers"):
        growth.stage_map(0, LAYERS)
    assert growth.prepared(measure).prepared(measure) == SkipGrow((2, 8), INFLUENCE)
    assert len(asked) == 1
    assert planned_stages(growth, LAYERS) == (StageShape(2, 2, picks=True), StageShape(8, 8, picks=True))
    with pytest.raises(ValueError, match="not finite"):
        SkipGrow((2, 8), (np.nan,) * LAYERS).stage_map(0, LAYERS)


def test_picked_rows_are_those_of_the_same_matrix(tree):
    stage = SkipGrow((3,), INFLUENCE).stage_map(0, LAYERS)
    small, dense = fuse(stage, tree), jax.jit(fuse)(stage, tree)
    for left, right in zip(jax.tree.leaves(small), jax.tree.leaves(dense), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6)


def test_growing_a_selection_that_learned_nothing_changes_nothing(tree):
    for stage in range(2):
        selection = SkipGrow((3, 5), INFLUENCE).stage_map(stage, LAYERS)
        assert_trees_equal(inherit(selection, fuse(selection, tree), tree), tree)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ProgFed(schedule="thirds"), "progfed_schedule 'thirds' is unknown"),
        (lambda: ProgFed(warmup_rounds=-1), "warmup_rounds -1 is negative"),
        (lambda: ProgFed(blocks=9).depths(8), "stages 9 cannot each be deeper"),
        (lambda: ProgFed().stage_rounds(7, 8), "rounds 7 leaves a stage of progfed without a round: use 8"),
        (lambda: TopGrow((4, 2)), "do not ascend"),
        (lambda: TopGrow((16,)).depths(8), "beyond the model's 8 layers"),
    ],
)
def test_fixed_growths_refuse_what_does_not_fit(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_stage_change_is_measured_in_one_pass_over_the_weights(tree, reads):
    growth = DevFT((3, 8))
    step = next_stage(growth, 0, tree, (), KEY)
    assert len(reads) == len(jax.tree.leaves(tree))
    assert_trees_equal(step.layer_map, growth.next(0, tree, (), KEY))
    np.testing.assert_allclose(step.similarity, layer_similarity(tree), atol=1e-6)
    np.testing.assert_allclose(step.gap, transition_gap(layer_gram(tree), step.layer_map), rtol=1e-5)
    assert step.gap > 0
    assert step.spectrum.shape == (LAYERS,)
    assert sum(step.group_sizes) == LAYERS
    assert len(step.group_sizes) == 3


def test_the_gap_is_of_all_parameters_and_the_similarity_of_the_selected(tree):
    growth = DevFT((3,), select=lambda path: path == "[1]['odd']")
    step = next_stage(growth, 0, tree, (), KEY)
    np.testing.assert_allclose(step.similarity, layer_similarity(tree[1]["odd"]), atol=1e-6)
    np.testing.assert_allclose(step.gap, transition_gap(layer_gram(tree), step.layer_map), rtol=1e-5)


@pytest.mark.parametrize("growth", [DevFT((8,)), EndToEnd()])
def test_the_full_model_is_reached_without_reading_it(growth, tree, reads):
    step = next_stage(growth, 0, tree, (), KEY)
    assert step.layer_map.is_identity
    assert not reads
    assert (step.similarity, step.spectrum) == (None, None)
    assert step.gap == 0
    assert step.group_sizes == (1,) * LAYERS
    assert next_stage(growth, 1, tree, (), KEY) is None


def test_a_growth_of_ones_own_needs_only_next_and_may_use_the_history(tree, reads):
    growth = Prefixes()
    step = next_stage(growth, 0, tree, (), KEY)
    assert step.layer_map.num_groups == 2
    assert step.gap == 0
    assert step.group_sizes == (1, 1)
    assert len(reads) == len(jax.tree.leaves(tree))
    assert next_stage(growth, 1, tree, [{"loss": 0.5}], KEY).layer_map.num_groups == 4
    assert next_stage(growth, 1, tree, [{"loss": 2.0}], KEY) is None
    assert planned_depths(growth, LAYERS) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"capacities": (4, 2)}, "do not ascend"),
        ({"capacities": ()}, "empty"),
        ({"capacities": (2,), "grouping": "all"}, "grouping method 'all' is unknown"),
        ({"capacities": (2,), "fusion": "all"}, "fusion method 'all' is unknown"),
        ({"capacities": (2,), "beta": "tenth"}, "beta 'tenth'"),
    ],
)
def test_devft_refuses_when_it_is_made(options, words):
    with pytest.raises(ValueError, match=words):
        DevFT(**options)


def test_devft_refuses_a_model_that_is_too_shallow(tree):
    with pytest.raises(ValueError, match="beyond the model's 8 layers"):
        DevFT((4, 16)).next(0, tree, (), KEY)
    with pytest.raises(ValueError, match="beyond the model's 8 layers"):
        planned_depths(DevFT((4, 16)), LAYERS)


def test_growths_compare_and_hash_by_value():
    assert DevFT([2, 4]) == DevFT((2, 4))
    assert hash(DevFT((2, 4))) == hash(DevFT((2, 4)))


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (4, "the growth gave a int: give a LayerMap, or None to end"),
        (LayerMap(jnp.eye(2, 16), jnp.zeros(16, int)), r"fuse has shape \(2, 16\): .* \[G, 8\]"),
        (LayerMap(jnp.full((1, LAYERS), jnp.nan), jnp.zeros(LAYERS, int)), "fuse holds NaN"),
        (LayerMap(jnp.eye(2, LAYERS), jnp.array([0, 1])), r"assign has shape \(2,\) .* i32\[8\]"),
        (LayerMap(jnp.eye(2, LAYERS), jnp.zeros(LAYERS)), "assign has .* dtype float32"),
        (LayerMap(jnp.eye(2, LAYERS), jnp.arange(LAYERS)), "assign holds groups from 0 to 7 .* use 0..1"),
        (LayerMap(jnp.eye(1, LAYERS), jnp.full(LAYERS, -2)), "assign holds groups from -2"),
        (LayerMap(jnp.eye(2, LAYERS), jnp.arange(LAYERS) % 2, jnp.ones(1, bool)), r"train has shape \(1,\) .* bool\[2\]"),
        (
            dataclasses.replace(LayerMap.top(LAYERS, 2), fuse=jnp.eye(2, LAYERS)),
            "6 bare layers run below rows that are not the 2",
        ),
        (dataclasses.replace(LayerMap.top(LAYERS, 2), bare=5), "5 bare layers"),
        (LayerMap(jnp.eye(2, LAYERS), jnp.zeros(LAYERS, int)), "group 1 trains and no layer is assigned to it"),
    ],
)
def test_a_map_that_does_not_fit_the_model_is_refused_in_words(tree, chosen, words):
    class Wrong:
        def next(self, stage, tree, history, key):
            return chosen

    with pytest.raises(ValueError, match=words):
        next_stage(Wrong(), 0, tree, (), KEY)


def test_a_group_of_no_layer_may_be_computed_if_it_does_not_train(tree):
    class Doubled:
        """Layer 0 twice: once to train, once as it is."""

        def next(self, stage, tree, history, key):
            assign = jnp.where(jnp.arange(LAYERS) == 0, 0, -1)
            return LayerMap(jnp.eye(LAYERS)[jnp.array([0, 0])], assign, jnp.array([True, False]))

    transition = next_stage(Doubled(), 0, tree, (), KEY)
    assert transition.group_sizes == (1, 0)
    assert transition.gap == 0


@pytest.mark.parametrize("name", GROWTHS)
def test_some_map_of_a_stage_has_the_shape_that_its_growth_tells(name):
    for shape in planned_stages(make_growth(GrowthOptions(growth=name), LAYERS), LAYERS):
        some = shape.some_map(LAYERS)
        check_layer_map(some, LAYERS)
        found = StageShape.of(some)
        assert (found.layers, found.frozen, found.bare, found.picks) == (shape.layers, shape.frozen, shape.bare, shape.picks)
        assert some.runs_base == (shape.bare > 0 or shape.layers == LAYERS)
