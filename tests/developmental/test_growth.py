import dataclasses
from itertools import pairwise
from types import SimpleNamespace

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
    Growth,
    LayerGrams,
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
    streaming,
    transition_gap,
)
from devft_jax.developmental.growths import GrowthOptions
from devft_jax.developmental.maps import check_layer_map
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


class Prefixes(Growth):
    """A growth as a user would write one: the first 2, then the first 4 layers, while the loss falls."""

    def next(self, stage, tree, history, key):
        if stage == 2 or (history and history[-1].loss > 1):
            return None
        depth = (2, 4)[stage]
        assign = jnp.where(jnp.arange(LAYERS) < depth, jnp.arange(LAYERS), -1)
        return LayerMap(jnp.eye(depth, LAYERS), assign)


def test_devft_grows_through_its_capacities_and_stops(tree):
    growth = DevFT((2, 4, 8))
    maps = [growth.next(stage, tree, (), KEY) for stage in range(4)]
    assert [m and m.num_groups for m in maps] == [2, 4, 8, None]
    assert maps[2].is_identity
    assert growth.depths(LAYERS) == (2, 4, 8)


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
    assert growth.depths(12) is None
    assert growth.stage_rounds(7, 12) == (3, 4)
    assert DevFT((5, 12)).next(0, tree, (), KEY).num_groups == 5


def test_every_named_growth_says_what_it_is():
    for name, kind in GROWTHS.items():
        assert all((kind.reference, kind.message, kind.state))
        growth = make_growth(GrowthOptions(growth=name), LAYERS)
        assert hash(growth) == hash(make_growth(GrowthOptions(growth=name), LAYERS))
        assert sum(growth.stage_rounds(12, LAYERS)) == 12


def test_end_to_end_is_one_stage_of_everything(tree):
    growth = EndToEnd()
    assert growth.next(0, tree, (), KEY).is_identity
    assert growth.next(1, tree, (), KEY) is None
    assert growth.depths(LAYERS) == (LAYERS,)


def test_progfed_is_prefixes_whose_last_is_the_model_itself(tree):
    growth = ProgFed(blocks=4)
    maps = [growth.next(stage, tree, (), KEY) for stage in range(5)]
    assert [found and found.num_groups for found in maps] == [2, 4, 6, 8, None]
    assert maps[1].assign.tolist() == [0, 1, 2, 3, -1, -1, -1, -1]
    assert maps[1].selected().tolist() == [0, 1, 2, 3]
    assert all(bool(found.train.all()) for found in maps[:4])
    assert_trees_equal(maps[3], LayerMap.identity(LAYERS))
    assert growth.depths(LAYERS) == (2, 4, 6, 8)


def test_progfed_warms_its_newest_block_up():
    growth = ProgFed(blocks=2, schedule="equal", warmup_rounds=3)
    assert growth.stage_rounds(9, LAYERS) == (3, 3, 3)
    warm = growth.stage_map(1, LAYERS)
    assert warm.train.tolist() == [False] * 4 + [True] * 4
    assert growth.shapes(LAYERS) == (
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
    assert growth.shapes(LAYERS) == (StageShape(2, 2, bare=6, picks=True), StageShape(8, 8, picks=True))
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
    chosen = [set(growth.most_influential(count)) for count in capacities]
    assert [len(each) for each in chosen] == capacities
    assert all(before < after for before, after in pairwise(chosen))
    assert all(0 in each and (len(each) == 1 or layers - 1 in each) for each in chosen)


def test_only_a_growth_without_its_figures_is_not_measured():
    assert not SkipGrow((2, 8)).measured
    assert SkipGrow((2, 8), INFLUENCE).measured
    assert SkipGrow((2, 8)).prepared(lambda: np.array(INFLUENCE)).measured
    assert EndToEnd().measured


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
    assert growth.shapes(LAYERS) == (StageShape(2, 2, picks=True), StageShape(8, 8, picks=True))
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
    assert next_stage(growth, 1, tree, [SimpleNamespace(loss=0.5)], KEY).layer_map.num_groups == 4
    assert next_stage(growth, 1, tree, [SimpleNamespace(loss=2.0)], KEY) is None
    assert growth.depths(LAYERS) is None


def test_what_a_growth_tells_of_its_stages_is_told_once():
    class Told(Prefixes):
        def depths(self, num_layers):
            return (2, 4)

    class Shaped(Prefixes):
        def shapes(self, num_layers):
            return StageShape(2, 1, 1, picks=True), StageShape(4, 4, picks=True)

    assert Told().shapes(LAYERS) == (StageShape(2, 2), StageShape(4, 4))
    assert Told().shapes(4)[-1].picks
    assert Told().stage_rounds(5, LAYERS) == (2, 3)
    assert Shaped().depths(LAYERS) == (2, 4)
    assert Shaped().stage_rounds(5, LAYERS) == (2, 3)
    silent = Prefixes()
    assert (silent.depths(LAYERS), silent.shapes(LAYERS), silent.stage_rounds(5, LAYERS)) == (None, None, None)


def test_the_grams_are_enough_for_a_growth_that_reads_weights(tree):
    class Largest(Growth):
        """One row: the layer with the largest weight."""

        def next(self, stage, tree, history, key):
            largest = np.argmax(np.abs(np.asarray(tree[0]["large"])).max(axis=(1, 2)))
            layers = jnp.arange(LAYERS)
            return LayerMap(jnp.eye(1, LAYERS, int(largest)), jnp.where(layers == largest, 0, -1))

    growth = Largest()
    assert_trees_equal(growth.from_grams(0, LayerGrams(tree), (), KEY), growth.next(0, tree, (), KEY))


def test_one_that_is_prepared_says_by_that_that_it_is_not_measured():
    class Asking(Prefixes):
        def prepared(self, measure):
            return self

    assert not Asking().measured
    assert Prefixes().measured
    unmeasured = Prefixes()
    assert unmeasured.prepared(lambda: np.zeros(LAYERS)) is unmeasured


def depth(self, num_layers):
    """What a user wrote for `depths`."""
    return (2, 4)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (
            {"depth": depth},
            "Odd.depth is not part of a growth: rename it depths if that is meant, or _depth if it is your own",
        ),
        ({"dephts": property(depth)}, "rename it depths if"),
        ({"stage_round": depth}, "rename it stage_rounds if"),
        ({"prepare": staticmethod(depth)}, "rename it prepared if"),
        ({"Shapes": depth}, "rename it shapes if"),
        ({"measure": property(depth)}, "rename it measured if"),
        ({"selects": None}, "rename it select if"),
        ({"depths": (2, 4)}, "Odd.depths is a method of every growth: write it as one, or rename the attribute"),
        ({"shapes": property(depth)}, "Odd.shapes is a method of every growth"),
        ({"__annotations__": {"depths": tuple}}, "Odd.depths is a method of every growth"),
        ({"measured": depth}, "Odd.measured is a property of every growth: decorate it with @property"),
    ],
)
def test_a_misspelt_member_is_refused_when_the_class_is_made(members, words):
    with pytest.raises(TypeError, match=words):
        type("Odd", (Prefixes,), members)


def test_members_of_ones_own_are_free():
    @dataclasses.dataclass(frozen=True)
    class Own(ProgFed):
        depth: int = 4
        rounds: tuple[int, ...] = ()
        select: object = None

        def steps(self, num_layers):
            return ((self.depth, 0),)

        def selection(self):
            return self._depth()

        def _depth(self):
            return self.depth

        @property
        def measured(self):
            return True

    assert Own().depths(LAYERS) == (4,)
    assert Own(depth=2).selection() == 2


def test_a_growth_without_next_cannot_be_made():
    class Unwritten(Growth):
        def depths(self, num_layers):
            return (2,)

    with pytest.raises(TypeError, match="abstract"):
        Unwritten()


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
        DevFT((4, 16)).depths(LAYERS)


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
        (LayerMap(jnp.eye(2, LAYERS), jnp.zeros(LAYERS, int)), "group 1 trains but no layer is assigned to it"),
    ],
)
def test_a_map_that_does_not_fit_the_model_is_refused_in_words(tree, chosen, words):
    class Wrong(Growth):
        def next(self, stage, tree, history, key):
            return chosen

    with pytest.raises(ValueError, match=words):
        next_stage(Wrong(), 0, tree, (), KEY)


def test_a_group_of_no_layer_may_be_computed_if_it_does_not_train(tree):
    class Doubled(Growth):
        """Layer 0 twice: once to train, once as it is."""

        def next(self, stage, tree, history, key):
            assign = jnp.where(jnp.arange(LAYERS) == 0, 0, -1)
            return LayerMap(jnp.eye(LAYERS)[jnp.array([0, 0])], assign, jnp.array([True, False]))

    transition = next_stage(Doubled(), 0, tree, (), KEY)
    assert transition.group_sizes == (1, 0)
    assert transition.gap == 0


@pytest.mark.parametrize("name", GROWTHS)
def test_some_map_of_a_stage_has_the_shape_that_its_growth_tells(name):
    for shape in make_growth(GrowthOptions(growth=name), LAYERS).shapes(LAYERS):
        some = shape.some_map(LAYERS)
        check_layer_map(some, LAYERS)
        found = StageShape.of(some)
        assert (found.layers, found.frozen, found.bare, found.picks) == (shape.layers, shape.frozen, shape.bare, shape.picks)
        assert some.runs_base == (shape.bare > 0 or shape.layers == LAYERS)
