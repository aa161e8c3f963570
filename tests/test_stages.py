import dataclasses

import pytest

from devft_jax.config import RunConfig
from devft_jax.developmental import DevFT
from devft_jax.errors import InputError
from devft_jax.stages import named_growth, plan_stages


class Silent:
    """A growth that tells nothing beforehand."""

    def next(self, stage, tree, history, key):
        return None


def test_equal_shares_leave_the_rest_to_the_last_stages():
    growth = DevFT((4, 8, 16, 32))
    assert plan_stages(RunConfig(rounds=11), growth, 32) == (2, 3, 3, 3)
    assert plan_stages(RunConfig(rounds=300), growth, 32) == (75, 75, 75, 75)
    assert plan_stages(RunConfig(stage_rounds=(1, 2, 3, 4)), growth, 32) == (1, 2, 3, 4)
    assert plan_stages(RunConfig(stage_rounds=(7,)), Silent(), 32) == (7,)


@pytest.mark.parametrize(
    ("options", "growth", "words"),
    [
        ({}, Silent(), r"stage_rounds is needed .*give the rounds of each, such as"),
        ({"stage_rounds": (1,)}, DevFT((4, 8)), "names 1 stages and the growth has 2"),
        ({"rounds": 1}, DevFT((4, 8)), "rounds 1 is fewer than the 2 stages"),
    ],
)
def test_rounds_that_do_not_fit_the_stages_are_refused(options, growth, words):
    with pytest.raises(InputError, match=words):
        plan_stages(RunConfig(**options), growth, 8)


def test_a_growth_that_does_not_fit_the_model_is_an_input_error():
    with pytest.raises(InputError, match="beyond the model's 8 layers"):
        named_growth(dataclasses.replace(RunConfig(), capacities=(4, 16)), 8)


@pytest.mark.parametrize(
    ("options", "capacities"),
    [
        ({}, (4, 8, 16, 32)),
        ({"stages": 3}, (8, 16, 32)),
        ({"stages": 1}, (32,)),
        ({"capacity_schedule": "linear"}, (8, 16, 24, 32)),
        ({"capacity_schedule": "linear", "stages": 5}, (7, 13, 20, 26, 32)),
        ({"capacity_schedule": "eigengap", "stages": 3}, (8, 16, 32)),
        ({"capacities": (2, 5), "capacity_schedule": "linear"}, (2, 5)),
    ],
)
def test_a_schedule_names_the_capacities(options, capacities):
    growth = named_growth(RunConfig(**options), 32)
    assert growth.capacities == capacities
    assert growth.eigengap == (options.get("capacity_schedule") == "eigengap")
