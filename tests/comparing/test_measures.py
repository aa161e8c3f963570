"""Figures, as they are found and written, the way to a target, and the front."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.comparing.measures import FINAL_LOSS, LEARNED, MEASURES, Form, pareto, reached
from devft_jax.reporting.units import BYTES, SECONDS
from tests.comparing.comparisons import arm, judged_at

PLUS_MINUS, ELLIPSIS = "\u00b1", "\u2026"


POINTS = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3), st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=9
)


@given(POINTS)
def test_the_front_is_what_nothing_beats(points):
    front = pareto(points)
    for name, (x, y) in points.items():
        beaten = any((a <= x and b <= y) and (a < x or b < y) for a, b in points.values())
        assert (name in front) != beaten
    assert [points[name] for name in front] == sorted(points[name] for name in front)


@pytest.mark.parametrize(
    ("form", "values", "expected"),
    [
        (FINAL_LOSS.form, (1.23456, (1.22226, 1.24686)), f"1.235 {PLUS_MINUS} 0.012"),
        (FINAL_LOSS.form, (1.23456, (0.9, 1.7)), "1.235 (0.900 to 1.700)"),
        (LEARNED[1].form, (0.123, None), "12.3%"),
        (LEARNED[1].form, (0.123, (0.119, 0.127)), f"12.3 {PLUS_MINUS} 0.4%"),
        (LEARNED[1].form, (0.05, (0.002, 0.6)), "5.0% (0.2 to 60.0%)"),
        (Form(BYTES), (13_762_560, None), "13.8 MB"),
        (Form(BYTES), (512, None), "512 B"),
        (Form(BYTES), (0, None), "0 B"),
        (Form(SECONDS), (12.34, (11.34, 13.34)), f"12.3 {PLUS_MINUS} 1.0 s"),
        (Form(SECONDS), (150.0, (144.0, 156.0)), f"2.50 {PLUS_MINUS} 0.10 min"),
    ],
)
def test_figures_are_shown_in_one_unit_with_their_interval(form, values, expected):
    assert form.shown(*values) == expected


def test_a_target_is_reached_where_all_arms_were_judged_or_at_a_runs_end():
    grown = judged_at(arm("DevFT", [2.0]), {0, 1, 2, 3, 4}, 2)
    [outcome] = grown.outcomes
    # From 5 to 2 in four steps: 2.75 after three, which FedIT was not judged at.
    assert reached(outcome, 2.75).round == 4
    assert reached(outcome, 3.5).round == 2
    [ends] = judged_at(arm("FedIT", [2.0]), {0, 3, 4}, 2).outcomes
    assert reached(ends, 2.75).round == 3


def test_who_could_join_is_a_mean_over_rounds():
    """Ten clients, of which nine hold the first stage of three rounds and five the second of one."""

    def stage(rounds, able):
        simulated = None if able is None else SimpleNamespace(eligible={"phone": able - 1, "laptop": 1})
        return SimpleNamespace(rounds=rounds, simulated=simulated)

    [measure] = [each for each in MEASURES if each.name == "could_join"]
    fleet = SimpleNamespace(clients=10, stages=[stage(3, 9), stage(1, 5)])
    assert measure.of(SimpleNamespace(record=fleet), None) == pytest.approx(0.8)
    without = SimpleNamespace(clients=10, stages=[stage(3, None)])
    assert measure.of(SimpleNamespace(record=without), None) is None
