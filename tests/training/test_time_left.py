"""The time that is left, in runs in which everything has a known cost."""

import io
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.reporting import progress as module
from devft_jax.reporting.progress import Progress
from devft_jax.storage.records import SecondsRecord
from devft_jax.training.time_left import Course, seconds_left
from tests.run_records import run_totals, stage_record

COSTS = st.floats(0.01, 10)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 8)), min_size=1, max_size=4),
    st.tuples(COSTS, COSTS, COSTS, COSTS),
    st.integers(0, 3),
    st.booleans(),
)
def test_the_time_left_is_what_the_rest_costs(stages, costs, every, full):
    """A stage's compiling is as long as the others', and all else goes by layers, as `seconds_left` takes it to be."""
    train, compiling, build, evaluate = costs
    stages, head = sorted(stages, key=lambda stage: stage[1]), 1.5
    course = Course([rounds for rounds, _ in stages], [depth for _, depth in stages], 8, head, every, full)
    whole = 8 + head
    # The untuned base is judged by a program of its own, whose compilation no stage repeats.
    seconds = SecondsRecord(train=0.0, compile=5.0, build=0.0, evaluate=whole * evaluate)
    totals = run_totals(seconds=seconds, compile_before=5.0)
    spent, told = seconds, []
    number = 0
    for rounds, layers in stages:
        depth = layers + head
        spent.compile += compiling
        spent.build += build * (layers < 8)
        spent.evaluate += evaluate * depth
        totals.stages.append(stage_record())
        for within in range(1, rounds + 1):
            number += 1
            spent.train += train * depth
            if every and number % every == 0 and within < rounds:
                spent.evaluate += evaluate * (depth + (whole if full and layers < 8 else 0))
            told.append((sum(spent.to_plain().values()), seconds_left(course, totals, [train * depth] * within, number)))
        spent.evaluate += evaluate * (depth + (whole if layers < 8 else 0))
    for so_far, left in told:
        assert so_far + left == pytest.approx(sum(spent.to_plain().values()))


def test_models_of_all_clients_and_saving_are_counted():
    course = Course([4], [2], 2, models=lambda rounds, last: 20.0 if last else 1.0)
    seconds = SecondsRecord(train=1.0, compile=5.0, build=0.0, evaluate=2.0)
    totals = run_totals(stages=[stage_record()], seconds=seconds)
    # Three rounds, saving, and twenty models at the end where two have been judged, one a second.
    assert seconds_left(course, totals, [1.0], 1, saving=0.5) == pytest.approx(3 * 1.0 + 3 * 0.5 + 20.0)


def test_a_slow_first_round_and_a_large_vocabulary_do_not_make_a_run_look_long():
    """Figures of a run of a narrow model with a large vocabulary: 12 s of training, compiling and judging were left."""
    course = Course([2, 3, 3], [6, 15, 30], 30, head=150.0)
    seconds = SecondsRecord(train=5.0, compile=12.0, build=16.0, evaluate=0.0)
    totals = run_totals(stages=[stage_record()], compile_before=10.0, seconds=seconds)
    left = seconds_left(course, totals, [4.5, 0.5], 2)
    # Two stages compile for 2 s each, one of them is built, and six rounds take little more than half a second.
    assert left == pytest.approx(2 * 2.0 + 16.0 + 0.5 * 3 * (165 + 180) / 156)


def test_what_takes_a_while_is_said_and_what_does_not_is_not(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    stream = io.StringIO()
    progress = Progress(stream)
    with progress.doing("judging the full model"):
        time.sleep(0.3)
    with progress.doing("something quick"):
        pass
    time.sleep(0.2)
    assert stream.getvalue() == "  judging the full model ...\n"
