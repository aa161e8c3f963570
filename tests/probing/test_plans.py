"""Plans against the growths of a run, and what a plan must not say."""

import dataclasses

import jax
import numpy as np
import pytest

from devft_jax.config.methods import growth_of
from devft_jax.config.run_config import RunConfig
from devft_jax.developmental import LayerGrams, next_stage
from devft_jax.errors import InputError
from devft_jax.federated.sampling import Purpose, run_key
from devft_jax.probing.plans import map_key, parse_plan, submodels
from tests.tiny import random_base

CONFIG = RunConfig(seed=3)
INFLUENCE = np.array([0.1, 0.3, 0.2, 0.4])


@pytest.fixture(scope="module")
def grams():
    return LayerGrams(random_base().blocks)


def maps(text, grams, depths=(2, 3)):
    plan = parse_plan(text, CONFIG)
    return [each.layer_map for each in submodels(plan, depths, grams, lambda config, kind="influence": INFLUENCE)]


def same(one, other):
    return map_key(one) == map_key(other)


def test_the_submodels_are_those_of_a_run(grams):
    made = maps("devft", grams)
    growth = growth_of(dataclasses.replace(CONFIG, capacities=(2, 3)), 4)
    for stage, found in enumerate(made):
        key = jax.random.fold_in(run_key(3, Purpose.GROWTH), stage)
        assert same(found, next_stage(growth, stage, grams.tree, (), key).layer_map)


def test_without_differences_only_the_anchors_are_left(grams):
    for anchor, nothing in zip(maps("devft:fusion=anchor", grams), maps("devft:beta=0", grams), strict=True):
        assert same(anchor, nothing)
        assert anchor.selected() is not None


def test_every_plan_has_the_depths_that_are_asked_for(grams):
    for text in ("devft:grouping=even_blocks", "skip-grow", "top-grow", "progfed"):
        assert [each.num_groups for each in maps(text, grams)] == [2, 3]
    assert maps("skip-grow", grams)[1].selected().tolist() == [0, 1, 3]
    assert maps("progfed", grams)[1].selected().tolist() == [0, 1, 2]
    assert [each.bare for each in maps("top-grow", grams)] == [2, 1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("devvt", "the plan 'devvt' cannot be made: growth 'devvt' is unknown; .*did you mean 'devft'"),
        ("devft:beta", "has the option 'beta'; write it as option=value"),
        ("devft:beta=2", "the plan 'devft:beta=2' cannot be made: beta 2.0 is outside"),
        ("devft:beta=x", "the plan 'devft:beta=x' cannot be made: beta 'x'"),
        ("devft:rank=4", "sets 'rank', which is no option of a growth's submodels"),
        ("skip-grow:beta=0.2", "sets beta 0.2, which is read by devft only"),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused_in_one_sentence(text, said):
    with pytest.raises(InputError, match=said):
        parse_plan(text, CONFIG)
