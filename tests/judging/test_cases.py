"""Verdicts as judges write them."""

import pytest

from devft_jax.judging.cases import rating_of, winner_of


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Good. Rating: [[7]]", 7.0),
        ("[[8.5]]", 8.5),
        ("[[10]] and again [[10]]", 10.0),
        ("Rating: [6]", 6.0),
        ("see [1], but [[4]]", 4.0),
        ("", None),
        ("Rating: 7", None),
        ("[[rating]]", None),
        ("[[0]]", None),
        ("[[11]]", None),
        ("[[3]] or [[4]]", None),
        ("[[7]", 7.0),
    ],
)
def test_ratings(text, rating):
    assert rating_of(text) == rating


@pytest.mark.parametrize(
    ("text", "winner"),
    [
        ("A is better: [[A]]", "A"),
        ("[[B]]. I repeat: [[B]]", "B"),
        ("[[C]]", "tie"),
        ("", None),
        ("[A]", None),
        ("[[A]] or [[B]]", None),
        ("[[D]]", None),
    ],
)
def test_winners(text, winner):
    assert winner_of(text) == winner
