"""Figures over judgements: means and intervals against plain computation, and the laws of pairs."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.comparing.statistics import student_quantile
from devft_jax.judging.judgements import NO_SCORE, WINNERS
from devft_jax.judging.questions import Question
from devft_jax.judging.results import Part, games_of, mean_of, outcome_of, over_turns, parts_of, results_of

QUESTIONS = [Question(number, ("writing", "math")[number % 2], ("a", "b")) for number in range(8)]
EVERY = Part("all", None)
SWAPPED = {"model_1": "model_2", "model_2": "model_1", "tie": "tie", "error": "error"}

games = st.lists(
    st.tuples(st.sampled_from(WINNERS), st.sampled_from(WINNERS)), min_size=2 * len(QUESTIONS), max_size=2 * len(QUESTIONS)
)


def pairs_of(winners, swap=False):
    """Lines of pairs; swapped, those of the same games with the two models in each other's place."""
    rows = []
    for number, (first, second) in enumerate(winners):
        if swap:
            # What was shown first as model_1 is model_2 now, so the games change places, too.
            first, second = SWAPPED[second], SWAPPED[first]
        question, turn = divmod(number, 2)
        names = ("base", "tuned") if swap else ("tuned", "base")
        rows.append(
            {"question_id": question, "turn": turn + 1, "model_1": names[0], "model_2": names[1]}
            | {"g1_winner": first, "g2_winner": second}
        )
    return rows


@given(winners=games, part=st.sampled_from(parts_of(QUESTIONS)))
def test_every_pair_counts_once_and_models_are_treated_alike(winners, part):
    mine = games_of(pairs_of(winners), QUESTIONS, part)
    asked = sum(
        part.category in ("all", QUESTIONS[number // 2].category) and part.turn in (None, number % 2 + 1)
        for number in range(len(winners))
    )
    assert mine.wins + mine.ties + mine.losses + mine.no_verdict == asked
    assert mine.inconsistent <= mine.ties
    theirs = games_of(pairs_of(winners, swap=True), QUESTIONS, part)
    assert (theirs.wins, theirs.ties, theirs.losses) == (mine.losses, mine.ties, mine.wins)
    assert (theirs.inconsistent, theirs.no_verdict) == (mine.inconsistent, mine.no_verdict)
    if mine.rate is not None:
        assert theirs.rate.value == pytest.approx(1 - mine.rate.value)
        assert theirs.rate.questions == mine.rate.questions
        assert theirs.rate.error == mine.rate.error or theirs.rate.error == pytest.approx(mine.rate.error)
        if mine.rate.low is not None:
            assert (theirs.rate.low, theirs.rate.high) == pytest.approx((1 - mine.rate.high, 1 - mine.rate.low))
            assert 0 < mine.rate.low <= mine.rate.value <= mine.rate.high < 1


@given(winners=games)
def test_a_rate_is_wins_and_half_of_the_ties_where_every_pair_has_a_verdict(winners):
    winners = [tuple("tie" if each == "error" else each for each in pair) for pair in winners]
    found = games_of(pairs_of(winners), QUESTIONS, EVERY)
    assert found.rate.value == pytest.approx((found.wins + found.ties / 2) / len(winners))
    assert found.rate.questions == len(QUESTIONS)


def test_a_judge_that_prefers_a_place_gives_ties_alone():
    rows = pairs_of([("model_1", "model_2")] * 16)
    found = games_of(rows, QUESTIONS, EVERY)
    assert (found.wins, found.ties, found.losses, found.inconsistent) == (0, 16, 0, 16)
    assert found.rate.value == 0.5


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        ("model_1", "model_1", "win"),
        ("model_2", "model_2", "loss"),
        ("tie", "tie", "tie"),
        ("model_1", "tie", "tie"),
        ("model_1", "model_2", "tie"),
        ("error", "model_1", None),
        ("error", "error", None),
    ],
)
def test_outcomes(first, second, outcome):
    assert outcome_of(first, second) == outcome


@given(st.lists(st.floats(1, 10), min_size=3, max_size=30))
def test_a_mean_has_its_standard_error_and_students_interval(values):
    found = mean_of(values)
    assert found.value == pytest.approx(statistics.fmean(values))
    assert found.error == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), abs=1e-12)
    if found.low is not None:
        reach = student_quantile(len(values) - 1) * found.error
        assert (found.low, found.high) == pytest.approx((found.value - reach, found.value + reach))


def test_a_question_counts_over_both_turns_where_both_have_a_rating():
    values = {(0, 1): 4.0, (0, 2): 6.0, (1, 1): 9.0}
    questions = [Question(0, "a", ("x", "y")), Question(1, "a", ("x", "y"))]
    assert over_turns(values, questions, Part("a", None)) == {0: 5.0}
    assert over_turns(values, questions, Part("all", 1)) == {0: 4.0, 1: 9.0}
    assert over_turns(values, questions, Part("b", 1)) == {}


def test_ratings_and_differences_are_over_questions_and_paired():
    ratings = {"base": [3, 5, 4, 6, 2, 7, 3, 4], "tuned": [5, 6, 6, 8, 3, 9, 5, NO_SCORE]}
    rows = [
        {"question_id": question.id, "turn": turn, "model": name, "score": ratings[name][question.id]}
        for name in ratings
        for question in QUESTIONS
        for turn in (1, 2)
    ]
    found = results_of(["base", "tuned"], "base", QUESTIONS, rows, [])
    assert [part.turn for part in found.parts] == [1] * 3 + [2] * 3 + [None] * 3
    assert found.ratings[EVERY]["base"].value == pytest.approx(34 / 8)
    assert found.ratings[EVERY]["tuned"].questions == 7
    difference = found.differences[EVERY]["tuned"]
    assert difference.value == pytest.approx(np.mean([2, 1, 2, 2, 1, 2, 2]))
    assert difference.error == pytest.approx(np.std([2, 1, 2, 2, 1, 2, 2], ddof=1) / math.sqrt(7))
    assert difference.low > 0
    assert found.unrated == {"base": 0, "tuned": 2}
    assert not found.games


def test_one_category_and_one_turn_are_one_part():
    assert parts_of([Question(0, "a", ("x",)), Question(1, "a", ("x",))]) == [Part("a", 1)]
