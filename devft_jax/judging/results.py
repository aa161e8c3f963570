"""What judgements say of models: mean ratings, differences over the same questions, and win rates.

The unit is the question. A question's rating over both turns is the mean of the two, and counts only where both have one, so
that its turns, which go together, are not taken for independent. With n questions the standard error is s / sqrt(n), s the
standard deviation over questions, and the 95 % interval is Student's (`devft_jax.comparing.statistics`).

A pair is won, lost or tied in each of two games with the answers in both orders. Two games that agree decide it; two that
do not are a tie, and counted as inconsistent (Zheng et al. 2023, section 3.4). A pair with a game without a verdict is left
out, and counted. The win rate counts a tie as half a win.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from devft_jax.comparing.statistics import ANYWHERE, SHARE, Bounds, estimate
from devft_jax.judging.cases import HIGHEST, LOWEST
from devft_jax.judging.judgements import NO_SCORE
from devft_jax.judging.questions import Id, Question

ALL = "all"
"""Stands for every category."""
SCALE = Bounds(LOWEST, HIGHEST)

Outcome = Literal["win", "loss", "tie"]
"""Of a pair, for its first model."""

WORTH: dict[Outcome, float] = {"win": 1.0, "tie": 0.5, "loss": 0.0}


@dataclass(frozen=True)
class Mean:
    """A mean over questions.

    Attributes:
      value: the mean.
      error: its standard error; None with fewer than two questions.
      low: lower end of its 95 % interval; None where there is none.
      high: upper end of its 95 % interval; None where there is none.
      questions: how many.
    """

    value: float
    error: float | None
    low: float | None
    high: float | None
    questions: int


def mean_of(values: Sequence[float], bounds: Bounds = ANYWHERE) -> Mean | None:
    """The mean of values with its standard error and interval; None without values.

    Args:
      values: one for each question.
      bounds: of the quantity.
    """
    found = estimate(values, bounds)
    if found is None:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Mean(found.mean, error, found.low, found.high, found.count)


@dataclass(frozen=True)
class Games:
    """Pairs of two models, counted for the first.

    Attributes:
      wins: pairs that it won.
      ties: pairs that nobody won, inconsistent ones among them.
      losses: pairs that it lost.
      inconsistent: pairs whose games do not agree.
      no_verdict: pairs with a game without a verdict, which count nowhere else.
      rate: mean over questions of wins and half of the ties; None without a verdict.
    """

    wins: int
    ties: int
    losses: int
    inconsistent: int
    no_verdict: int
    rate: Mean | None


@dataclass(frozen=True)
class Part:
    """Some of the judgements: a category, or all, at one turn, or both.

    Attributes:
      category: of the questions; "all" for every category.
      turn: 1 or 2; None for both.
    """

    category: str
    turn: int | None


@dataclass(frozen=True)
class Results:
    """What was judged.

    Attributes:
      models: their names, in order.
      baseline: the one that the others are compared with.
      parts: for which there are figures, in order.
      ratings: mean ratings by part and model; empty where answers were not rated.
      differences: mean differences to the baseline by part and model, over the questions that both have a rating of.
      games: pairs with the baseline by part and model; empty where answers were not compared.
      unrated: judgements without a rating, by model.
    """

    models: Sequence[str]
    baseline: str
    parts: Sequence[Part]
    ratings: Mapping[Part, Mapping[str, Mean | None]]
    differences: Mapping[Part, Mapping[str, Mean | None]]
    games: Mapping[Part, Mapping[str, Games]]
    unrated: Mapping[str, int]


def parts_of(questions: Sequence[Question]) -> list[Part]:
    """Every category and all of them, at every turn and, where there are two, at both.

    Args:
      questions: that were judged.
    """
    categories = list(dict.fromkeys(question.category for question in questions))
    turns: list[int | None] = [1]
    if any(len(question.turns) > 1 for question in questions):
        turns += [2, None]
    return [Part(category, turn) for turn in turns for category in [*categories, *[ALL] * (len(categories) > 1)]]


def over_turns(values: Mapping[tuple[Id, int], float], questions: Sequence[Question], part: Part) -> dict[Id, float]:
    """A figure for each question of a part: that of a turn, or the mean over its turns where all have one.

    Args:
      values: by question and turn.
      questions: that were judged.
      part: whose questions are taken.
    """
    found = {}
    for question in questions:
        if part.category not in (ALL, question.category):
            continue
        turns = range(1, len(question.turns) + 1) if part.turn is None else [part.turn]
        known = [values[question.id, turn] for turn in turns if (question.id, turn) in values]
        if known and len(known) == len(turns):
            found[question.id] = statistics.fmean(known)
    return found


def outcome_of(first: str, second: str) -> Outcome | None:
    """A pair's outcome for model_1, from the winners of its games; None where one has no verdict.

    Args:
      first: winner of the game in which the judge sees model_1 first: "model_1", "model_2", "tie" or "error".
      second: winner of the other game.
    """
    if "error" in (first, second):
        return None
    if first != second or first == "tie":
        return "tie"
    return "win" if first == "model_1" else "loss"


def games_of(rows: Sequence[Mapping[str, Any]], questions: Sequence[Question], part: Part) -> Games:
    """What pairs of two models say in a part.

    Args:
      rows: lines of pairs, all of the same two models.
      questions: that were judged.
      part: of the judgements.
    """
    ids = {question.id for question in questions if part.category in (ALL, question.category)}
    some = [row for row in rows if row["question_id"] in ids and part.turn in (None, row["turn"])]
    outcomes = [outcome_of(row["g1_winner"], row["g2_winner"]) for row in some]
    inconsistent = sum(
        row["g1_winner"] != row["g2_winner"] for row, found in zip(some, outcomes, strict=True) if found is not None
    )
    worth = {
        (row["question_id"], row["turn"]): WORTH[found]
        for row, found in zip(some, outcomes, strict=True)
        if found is not None
    }
    rate = mean_of(list(over_turns(worth, questions, part).values()), SHARE)
    return Games(
        wins=outcomes.count("win"),
        ties=outcomes.count("tie"),
        losses=outcomes.count("loss"),
        inconsistent=inconsistent,
        no_verdict=outcomes.count(None),
        rate=rate,
    )


def results_of(
    models: Sequence[str],
    baseline: str,
    questions: Sequence[Question],
    singles: Sequence[Mapping[str, Any]],
    pairs: Sequence[Mapping[str, Any]],
) -> Results:
    """The figures of all models.

    Args:
      models: their names.
      baseline: the one that the others are compared with.
      questions: that were judged.
      singles: lines of ratings.
      pairs: lines of comparisons with the baseline.
    """
    parts = parts_of(questions)
    others = [name for name in models if name != baseline]
    scores: dict[str, dict[tuple[Id, int], float]] = {name: {} for name in models}
    for row in singles:
        if row["score"] != NO_SCORE:
            scores[row["model"]][row["question_id"], row["turn"]] = row["score"]
    ratings: dict[Part, dict[str, Mean | None]] = {}
    differences: dict[Part, dict[str, Mean | None]] = {}
    games: dict[Part, dict[str, Games]] = {}
    for part in parts:
        if singles:
            values = {name: over_turns(scores[name], questions, part) for name in models}
            ratings[part] = {name: mean_of(list(values[name].values()), SCALE) for name in models}
            differences[part] = {name: _difference(values[name], values[baseline]) for name in others}
        if pairs:
            games[part] = {
                name: games_of([row for row in pairs if row["model_1"] == name], questions, part) for name in others
            }
    unrated = {name: sum(row["model"] == name and row["score"] == NO_SCORE for row in singles) for name in models}
    return Results(models, baseline, parts, ratings, differences, games, unrated)


def _difference(mine: Mapping[Id, float], theirs: Mapping[Id, float]) -> Mean | None:
    return mean_of([mine[each] - theirs[each] for each in mine if each in theirs], SCALE.of_differences)
