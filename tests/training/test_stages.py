import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.config.methods import growth_of
from devft_jax.config.run_config import RunConfig
from devft_jax.developmental import DevFT, Growth
from devft_jax.errors import InputError
from devft_jax.training.stages import after_round, has_flattened, is_measured, pays, plan_stages


class Silent(Growth):
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
        ({"stage_rounds": (1,)}, DevFT((4, 8)), "stage_rounds has 1 values and the growth 2 stages"),
        ({"rounds": 1}, DevFT((4, 8)), "rounds 1 is fewer than the 2 stages"),
    ],
)
def test_rounds_that_do_not_fit_the_stages_are_refused(options, growth, words):
    with pytest.raises(InputError, match=words):
        plan_stages(RunConfig(**options), growth, 8)


def test_a_growth_that_does_not_fit_the_model_is_an_input_error():
    with pytest.raises(InputError, match="beyond the model's 8 layers"):
        growth_of(dataclasses.replace(RunConfig(), capacities=(4, 16)), 8)


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
    growth = growth_of(RunConfig(**options), 32)
    assert growth.capacities == capacities
    assert growth.eigengap == (options.get("capacity_schedule") == "eigengap")


def test_a_plateau_is_a_mean_that_no_longer_falls():
    falling = [4.0, 3.0, 2.0, 1.0]
    assert not has_flattened(falling, window=2, improvement=0.1)
    assert has_flattened([*falling, 1.0, 1.0, 1.0], window=2, improvement=0.1)
    assert not has_flattened([1.0] * 3, window=2, improvement=0.1)
    assert has_flattened([10.0, 10.0, 9.5, 9.5], window=2, improvement=0.1)
    assert not has_flattened([10.0, 10.0, 9.5, 9.5], window=2, improvement=0.04)
    # One lucky cohort is no end, and one unlucky cohort no plateau.
    assert not has_flattened([4.0, 4.0, 1.0, 5.0], window=2, improvement=0.1)


PLATEAU = RunConfig(stage_end="plateau", plateau_rounds=2, plateau_improvement=0.1)


def test_a_flat_stage_gives_the_rest_of_its_rounds_to_the_last():
    planned = (8, 8, 8)
    assert after_round(PLATEAU, planned, 0, [3.0] * 3) == planned
    assert after_round(PLATEAU, planned, 0, [3.0] * 4) == (4, 8, 12)
    assert after_round(PLATEAU, (4, 8, 12), 1, [3.0] * 5) == (4, 5, 15)
    assert after_round(PLATEAU, planned, 2, [3.0] * 5) == planned
    assert after_round(PLATEAU, planned, 0, [3.0] * 8) == planned
    assert after_round(dataclasses.replace(PLATEAU, min_stage_rounds=6), planned, 0, [3.0] * 5) == planned
    assert after_round(dataclasses.replace(PLATEAU, min_stage_rounds=6), planned, 0, [3.0] * 6) == (6, 8, 10)
    assert after_round(RunConfig(), planned, 0, [3.0] * 6) == planned


@given(st.lists(st.floats(0.1, 10), min_size=30, max_size=30), st.integers(1, 4), st.lists(st.integers(1, 9), min_size=1))
def test_however_stages_end_the_run_has_its_rounds(losses, window, planned):
    config = dataclasses.replace(PLATEAU, plateau_rounds=window)
    rounds: tuple[int, ...] = tuple(planned)
    for stage in range(len(planned)):
        done = 0
        while done < rounds[stage]:
            done += 1
            rounds = after_round(config, rounds, stage, [losses[(stage + n) % 30] for n in range(done)])
        assert stage == len(planned) - 1 or 1 <= done <= planned[stage]
    assert sum(rounds) == sum(planned)


GAIN = RunConfig(stage_end="gain", gain_every=2, min_stage_rounds=3)
costs = st.floats(1e-3, 1e15)
alignments = st.integers(-(10**6), 10**6).map(lambda number: number / 10**6)


def test_a_stage_whose_next_one_pays_gives_it_the_rest_of_its_rounds():
    planned = (8, 8, 8)
    assert [done for done in range(1, 9) if is_measured(GAIN, planned, 0, done)] == [4, 6]
    assert not any(is_measured(GAIN, planned, 2, done) for done in range(1, 9))
    assert not any(is_measured(PLATEAU, planned, 0, done) for done in range(1, 9))
    assert after_round(GAIN, planned, 0, [3.0] * 4, next_pays=True) == (4, 12, 8)
    assert after_round(GAIN, planned, 0, [3.0] * 4) == planned
    assert after_round(GAIN, (4, 12, 8), 1, [3.0] * 6, next_pays=True) == (4, 6, 14)
    assert after_round(PLATEAU, planned, 0, [4.0, 3.0, 2.0, 1.0], next_pays=True) == planned


@given(alignments, costs, alignments, costs, st.sampled_from([2.0**-20, 0.5, 4.0, 2.0**30]))
def test_more_per_cost_pays_whatever_the_unit_of_cost(one, cost, other, other_cost, unit):
    found = pays(one, cost, than=(other, other_cost))
    assert found == pays(one, unit * cost, than=(other, unit * other_cost))
    assert found or pays(other, other_cost, than=(one, cost))
    assert pays(one, cost, than=(one, cost))
    if abs(one / cost - other / other_cost) > 1e-9 * (abs(one / cost) + abs(other / other_cost)):
        assert found == (one / cost > other / other_cost)
    assert not pays(float("nan"), cost, than=(other, other_cost))
    assert not pays(one, cost, than=(float("nan"), other_cost))


@given(st.lists(st.booleans(), min_size=40, max_size=40), st.integers(1, 3), st.lists(st.integers(1, 9), min_size=1))
def test_however_gains_end_stages_none_begins_later_than_planned_and_the_run_has_its_rounds(found, every, planned):
    config = dataclasses.replace(GAIN, gain_every=every, min_stage_rounds=1)
    rounds: tuple[int, ...] = tuple(planned)
    for stage in range(len(planned)):
        done = 0
        while done < rounds[stage]:
            done += 1
            asked = is_measured(config, rounds, stage, done)
            pays_here = asked and found[(7 * stage + done) % 40]
            before = rounds
            rounds = after_round(config, rounds, stage, [1.0] * done, next_pays=pays_here)
            assert (rounds != before) == pays_here
        assert rounds[stage] == done >= 1
        assert sum(rounds[: stage + 1]) <= sum(planned[: stage + 1])
    assert sum(rounds) == sum(planned)


def test_progfed_gives_the_first_stages_half_a_share():
    progfed = {"growth": "progfed", "rounds": 300}
    for options, expected in (
        ({}, (37, 37, 37, 189)),
        ({"progfed_schedule": "equal"}, (75, 75, 75, 75)),
        ({"stages": 3, "warmup_rounds": 5, "rounds": 310}, (50, 5, 50, 5, 200)),
    ):
        config = RunConfig(**{**progfed, **options})
        assert plan_stages(config, growth_of(config, 32), 32) == expected
    short = RunConfig(growth="progfed", rounds=9, warmup_rounds=1)
    with pytest.raises(InputError, match="rounds 9 leaves a stage of progfed without a round: use 11 or more"):
        plan_stages(short, growth_of(short, 32), 32)
