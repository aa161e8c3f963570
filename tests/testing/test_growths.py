"""The laws hold for every growth of the registry, and each finds one that breaks it."""

import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.developmental import (
    GROWTHS,
    FixedGrowth,
    Growth,
    LayerMap,
    NamedGrowth,
    ProgFed,
    SkipGrow,
    StageShape,
    make_growth,
)
from devft_jax.developmental.classes import ClassShape
from devft_jax.developmental.growths import GrowthOptions
from devft_jax.testing import GROWTH_LAWS, LawError, check_growth
from devft_jax.testing import growths as laws
from devft_jax.testing.growths import GrowthCase

LAYERS = 8


def prefix(depth):
    layers = jnp.arange(LAYERS)
    return LayerMap(jnp.eye(depth, LAYERS), jnp.where(layers < depth, layers, -1))


class Prefixes(Growth):
    """The first 2, 4, 8 layers."""

    def depths(self, num_layers):
        return (2, 4, 8)

    def next(self, stage, tree, history, key):
        return prefix((2, 4, 8)[stage]) if stage < 3 else None


@pytest.mark.parametrize("name", GROWTHS)
@pytest.mark.parametrize("layers", [4, 12])
def test_every_growth_keeps_the_laws(name, layers):
    check_growth(make_growth(GrowthOptions(growth=name), layers), num_layers=layers)


@pytest.mark.parametrize("growth", [Prefixes(), ProgFed(4, warmup_rounds=2), SkipGrow((2, 8))])
def test_others_keep_them_too(growth):
    check_growth(growth)


def test_what_makes_a_growth_is_checked_as_the_growth_that_it_makes():
    named = GROWTHS["devft"]
    for make in (named, named.make, lambda options, num_layers: Prefixes()):
        check_growth(make, quick=True)
    record = NamedGrowth(reference="", message="", state="", make=lambda options, num_layers: Unshared())
    for make in (record, record.make):
        with pytest.raises(LawError, match=r"^Unshared breaks the law"):
            check_growth(make, quick=True)


def test_one_that_tells_nothing_is_asked_for_some_stages():
    asked = []

    class Endless(Growth):
        def next(self, stage, tree, history, key):
            asked.append((stage, [row.layers for row in history]))
            return prefix(2)

    check_growth(Endless(), stages=3)
    assert [stage for stage, _ in asked[:3]] == [0, 1, 2]
    assert asked[2][1] == [2, 2, 2, 2]


class Odd(Prefixes):
    def shapes(self, num_layers):
        return (StageShape(2, 2), StageShape(8, 8))


class Deep(Prefixes):
    def depths(self, num_layers):
        return (2, 4, 16)


class Unshared(Prefixes):
    def stage_rounds(self, rounds, num_layers):
        return (1, 1, 1)


class Empty(Prefixes):
    def stage_rounds(self, rounds, num_layers):
        return (0, 0, rounds)


class Fewer(Prefixes):
    def stage_rounds(self, rounds, num_layers):
        return (1, rounds - 1)


class Misfit(Prefixes):
    def next(self, stage, tree, history, key):
        return LayerMap(jnp.eye(2, 4), jnp.arange(4) % 2)


class Never(Prefixes):
    def next(self, stage, tree, history, key):
        return None


class Late(Prefixes):
    def next(self, stage, tree, history, key):
        return prefix((2, 4, 8)[min(stage, 2)])


class Other(Prefixes):
    def next(self, stage, tree, history, key):
        return prefix((2, 6, 8)[stage]) if stage < 3 else None


class Counting(Prefixes):
    def __init__(self):
        self.asked = 0

    def next(self, stage, tree, history, key):
        self.asked += 1
        return prefix(2 * self.asked) if stage < 3 else None

    def depths(self, num_layers):
        return (2, 4, 6)


class Twofold(Prefixes):
    def from_grams(self, stage, grams, history, key):
        return prefix(3)


class Greedy(Prefixes):
    def prepared(self, measure):
        measure()
        return self


class Lost(Prefixes):
    def prepared(self, measure):
        return None


class Fixed(FixedGrowth):
    def stage_map(self, stage, num_layers):
        return LayerMap(jnp.eye(2, 4), jnp.arange(4) % 2) if stage == 0 else None


class Unending(FixedGrowth):
    def stage_map(self, stage, num_layers):
        return FULL


class Larger(Prefixes):
    def classes(self, stage, num_layers):
        return (ClassShape(4, 4),)

    def class_map(self, index, stage, num_layers, maps, draws):
        return LayerMap.of_layers(num_layers, [0, 1, 2, 3, 4])


class Unsure(Larger):
    def inclusion(self, index, stage, num_layers):
        return np.ones(2)


FULL = LayerMap.identity(LAYERS)
BROKEN = [
    (laws.announcements_agree, Odd, r"depths are \(2, 4, 8\) and those of shapes \(2, 8\)"),
    (laws.announcements_agree, Deep, "depths are .* of a model of 8 layers; give numbers from 1 to 8"),
    (laws.announcements_agree, Unshared, r"the shares \(1, 1, 1\) of 1000 rounds add up to 3"),
    (laws.announcements_agree, Empty, "leave a stage without a round"),
    (laws.announcements_agree, Fewer, "divides the rounds over 2 stages but announces 3"),
    (laws.fixed_maps_fit, Fixed, r"in stage 0, fuse has shape \(2, 4\)"),
    (laws.prepares_itself, Greedy, "asks for its measurement 2 times"),
    (laws.prepares_itself, Lost, "prepared returns a NoneType"),
    (laws.gives_maps, Misfit, r"in stage 0, fuse has shape \(2, 4\)"),
    (laws.gives_maps, Never, "there is none in stage 0"),
    (laws.follows_its_announcements, Late, "it announces 3 stages but gives 4 maps or more"),
    (laws.follows_its_announcements, Other, r"stage 1 is StageShape\(layers=6.* but was announced as StageShape\(layers=4"),
    (
        laws.classes_hold_what_they_say,
        Larger,
        r"class 0 of stage 0 is StageShape\(layers=5.* was announced as .*layers=4",
    ),
    (laws.classes_hold_what_they_say, Unsure, r"inclusion of class 0 has shape \(2,\); give f64\[8\]"),
    (laws.depends_on_its_arguments_alone, Counting, "asked again, after later ones, gives a different map"),
    (laws.reads_inner_products, Twofold, "from_grams of stage 0 gives a different map"),
]


@pytest.mark.parametrize(("law", "kind", "words"), BROKEN)
def test_a_broken_law_is_found(law, kind, words):
    with pytest.raises(LawError, match=words):
        law(GrowthCase(kind(), LAYERS, 4))


def test_every_law_has_been_broken():
    assert {law for law, *_ in BROKEN} == set(GROWTH_LAWS)


def test_a_fixed_growth_that_never_ends_is_found():
    with pytest.raises(
        LawError, match=r"^Unending .* stage_map gives more than 1000 maps: return None after the last stage\."
    ):
        check_growth(Unending(), quick=True)


def test_the_error_names_what_was_checked_and_the_law():
    with pytest.raises(LawError, match=r"^Unshared breaks the law 'What it announces about its stages is consistent"):
        check_growth(Unshared(), quick=True)
    with pytest.raises(LawError, match=r"^object breaks the law 'It is a Growth\.'"):
        check_growth(object())
