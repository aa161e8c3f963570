"""Learning rates by hand, and what each bad option is told."""

import dataclasses

import pytest

from devft_jax.errors import InputError
from devft_jax.federated.options import (
    FederatedOptions,
    LearningRateOptions,
    learning_rate_at,
    validate_learning_rate,
)
from devft_jax.options import check_options

# Three stages of 2, 1 and 4 rounds.
STAGES = (2, 1, 4)


def rates(options: LearningRateOptions, stage_rounds=STAGES) -> list[float]:
    """The rate of every round of a run."""
    return [
        learning_rate_at(options, stage_rounds, stage, index)
        for stage, rounds in enumerate(stage_rounds)
        for index in range(rounds)
    ]


def test_a_constant_rate_never_changes():
    assert rates(LearningRateOptions(learning_rate=(3e-4,), schedule="constant")) == [3e-4] * 7


def test_the_papers_ladder_has_a_rate_for_each_stage():
    ladder = LearningRateOptions(learning_rate=(1e-6, 1e-5, 1e-4), schedule="constant")
    assert rates(ladder) == [1e-6, 1e-6, 1e-5, 1e-4, 1e-4, 1e-4, 1e-4]


def test_cosine_starts_at_the_rate_and_counts_from_zero():
    options = LearningRateOptions(learning_rate=(1e-4,), schedule="cosine", min_learning_rate=1e-6)
    # 1e-6 + 99e-6 (1 + cos(pi t / 4)) / 2 for t = 0, 1, 2, 3.
    wanted = [1e-4, 8.5501786e-5, 5.05e-5, 1.5498214e-5]
    assert rates(options, (4,)) == pytest.approx(wanted, rel=1e-7)
    # The cosine runs over all rounds: where they are cut into stages does not matter.
    assert rates(options, (1, 2, 1)) == pytest.approx(wanted, rel=1e-7)


def test_linear_falls_by_equal_steps_and_would_reach_its_floor_a_round_later():
    options = LearningRateOptions(learning_rate=(1e-4,), schedule="linear", min_learning_rate=2e-5)
    assert rates(options, (4,)) == pytest.approx([1e-4, 8e-5, 6e-5, 4e-5])
    assert rates(options, (1, 2, 1)) == pytest.approx([1e-4, 8e-5, 6e-5, 4e-5])
    assert learning_rate_at(options, (4,), 0, 4) == pytest.approx(2e-5)
    restarting = LearningRateOptions(learning_rate=(1e-4,), schedule="linear-per-stage", min_learning_rate=0.0)
    assert rates(restarting, (2, 4)) == pytest.approx([1e-4, 5e-5, 1e-4, 7.5e-5, 5e-5, 2.5e-5])


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_a_warm_up_rises_to_the_rate_and_the_fall_begins_there(schedule):
    plain = LearningRateOptions(learning_rate=(8e-5,), schedule=schedule, min_learning_rate=0.0)
    warm = dataclasses.replace(plain, rate_warmup_rounds=3)
    assert rates(warm, (2, 5)) == pytest.approx([2e-5, 4e-5, 6e-5, *rates(plain, (4,))])
    per_stage = dataclasses.replace(warm, schedule=f"{schedule}-per-stage", rate_warmup_rounds=1)
    if schedule != "constant":
        assert rates(per_stage, (3, 2)) == pytest.approx([4e-5, *rates(plain, (2,)), 4e-5, 8e-5])


def test_a_warm_up_may_last_as_long_as_the_run_or_longer():
    warm = LearningRateOptions(learning_rate=(8e-5,), min_learning_rate=0.0, rate_warmup_rounds=4)
    assert rates(warm, (4,)) == pytest.approx([1.6e-5, 3.2e-5, 4.8e-5, 6.4e-5])
    assert rates(warm, (2,)) == pytest.approx([1.6e-5, 3.2e-5])
    # Lengthened, the rounds that were run keep their rates.
    assert rates(warm, (5,)) == pytest.approx([1.6e-5, 3.2e-5, 4.8e-5, 6.4e-5, 8e-5])


def test_a_rate_below_the_floor_warms_up_all_the_same():
    warm = LearningRateOptions(learning_rate=(1e-7,), min_learning_rate=1e-6, schedule="linear", rate_warmup_rounds=1)
    assert rates(warm, (3,)) == pytest.approx([5e-8, 1e-7, 1e-7])


def test_cosine_per_stage_restarts():
    options = LearningRateOptions(learning_rate=(2e-4,), schedule="cosine-per-stage", min_learning_rate=0.0)
    half = [2e-4, 1e-4]
    quarter = [2e-4, 1.7071068e-4, 1e-4, 2.9289322e-5]
    assert rates(options) == pytest.approx([*half, 2e-4, *quarter], rel=1e-6)


def test_a_ladder_takes_the_cosine_too():
    options = LearningRateOptions(learning_rate=(1e-4, 2e-4), schedule="cosine-per-stage", min_learning_rate=0.0)
    assert rates(options, (2, 2)) == pytest.approx([1e-4, 5e-5, 2e-4, 1e-4])


def test_a_rate_at_or_below_the_floor_stays_as_it_is():
    options = LearningRateOptions(learning_rate=(1e-7,), min_learning_rate=1e-6)
    assert rates(options) == [1e-7] * 7
    zero = LearningRateOptions(learning_rate=(0.0,), min_learning_rate=0.0)
    assert rates(zero) == [0.0] * 7


@pytest.mark.parametrize(
    ("options", "stages", "sentence"),
    [
        (
            {"schedule": "step"},
            None,
            "schedule 'step' is unknown; choose from constant, cosine, cosine-per-stage, linear, linear-per-stage.",
        ),
        (
            {"rate_warmup_rounds": -1},
            None,
            "rate_warmup_rounds -1 is negative; use 0 or more.",
        ),
        (
            {"learning_rate": ()},
            None,
            "learning_rate is empty; give one value or more, each 0 or more.",
        ),
        (
            {"learning_rate": (1e-4, -1e-4)},
            2,
            "learning_rate 0.0001,-0.0001 has -0.0001, which is negative; use 0 or more.",
        ),
        (
            {"learning_rate": (float("inf"),)},
            1,
            "learning_rate inf is not finite; give a number such as 1e-4.",
        ),
        (
            {"learning_rate": (float("nan"),)},
            1,
            "learning_rate nan is not finite; give a number such as 1e-4.",
        ),
        (
            {"min_learning_rate": -1e-6},
            None,
            "min_learning_rate -1e-06 is negative; use 0 or more.",
        ),
        (
            {"learning_rate": (1e-6, 1e-5, 1e-4)},
            4,
            "learning_rate has 3 rates for 4 stages; give one, or one per stage.",
        ),
    ],
)
def test_a_bad_learning_rate_is_named_with_its_remedy(options, stages, sentence):
    with pytest.raises(InputError) as caught:
        validate_learning_rate(LearningRateOptions(**options), stages)
    assert str(caught.value) == sentence


def test_rates_fit_one_per_stage_or_one_for_all():
    ladder = LearningRateOptions(learning_rate=(1e-6, 1e-5, 1e-4, 1e-4))
    validate_learning_rate(ladder, 4)
    validate_learning_rate(ladder)
    validate_learning_rate(LearningRateOptions(), 4)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"weighting": "loss"}, "weighting 'loss' is unknown; choose from method, examples, uniform."),
        (
            {"message_dtype": "int8"},
            "message_dtype 'int8' is unknown; choose from float32, bfloat16, float16.",
        ),
        ({"rounds": 0}, "rounds 0 is not positive; use 1 or more."),
        ({"clients_per_round": -2}, "clients_per_round -2 is not positive; use 1 or more."),
        ({"local_steps": 0}, "local_steps 0 is not positive; use 1 or more."),
        ({"batch_size": 0}, "batch_size 0 is not positive; use 1 or more."),
        ({"max_nonfinite": 1.0}, "max_nonfinite 1.0 is outside [0, 1); 0.5 is usual."),
        ({"max_nonfinite": -0.1}, "max_nonfinite -0.1 is outside [0, 1); 0.5 is usual."),
    ],
)
def test_a_bad_protocol_is_named_with_its_remedy(options, sentence):
    with pytest.raises(InputError) as caught:
        check_options(FederatedOptions(**options))
    assert str(caught.value) == sentence


def test_the_defaults_are_valid():
    check_options(FederatedOptions())
    validate_learning_rate(LearningRateOptions())
