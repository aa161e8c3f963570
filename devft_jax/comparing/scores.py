"""Scores of a comparison's final models on benchmark tasks: means over seeds, and differences to the reference.

Over several seeds a mean has the interval of `devft_jax.comparing.statistics`, and a difference is paired by seed. A single
seed has no interval; scores and differences then have standard errors over the items of the task. The untuned base does not
depend on the seed and always has such an error.
"""

from typing import Any

from devft_jax.comparing.results import ArmResult, Budget, Comparison, TaskScores
from devft_jax.comparing.statistics import ANYWHERE, SHARE, Bounds, Estimate, estimate
from devft_jax.comparing.statistics import paired_difference as difference_by_seed
from devft_jax.harness.results import PairedDifference, TaskScore, paired_difference


def bounds_of(scores: TaskScores, score: TaskScore) -> Bounds:
    """The range of a metric: shares if every item has a value from 0 to 1, unless less is better.

    Args:
      scores: all scores.
      score: names task, metric and filter.
    """
    values = [
        value
        for found in scores.all
        for name in found.members.get(score.task, [score.task])
        for value in found.items.get((name, score.metric, score.filter), {}).values()
    ]
    share = score.higher_is_better is not False and bool(values) and min(values) >= 0 and max(values) <= 1
    return SHARE if share else ANYWHERE


def scores_by_seed(scores: TaskScores, arm: ArmResult, score: TaskScore) -> dict[int, TaskScore]:
    """The scores of an arm's runs.

    Args:
      scores: all scores.
      arm: the arm.
      score: names task, metric and filter.

    Returns:
      The score of each seed that has it.
    """
    runs = {run.seed: scores.runs[run.folder] for run in arm.finished if run.folder in scores.runs}
    found = {seed: results.find(score.task, score.metric, score.filter) for seed, results in runs.items()}
    return {seed: own for seed, own in found.items() if own is not None}


def mean_score(scores: TaskScores, arm: ArmResult, score: TaskScore) -> Estimate | None:
    """The mean over an arm's seeds with its interval; None if no run has the score.

    Args:
      scores: all scores.
      arm: the arm.
      score: names task, metric and filter.
    """
    return estimate([own.value for own in scores_by_seed(scores, arm, score).values()], bounds_of(scores, score))


def score_difference(scores: TaskScores, arm: ArmResult, reference: ArmResult, score: TaskScore) -> Estimate | None:
    """The mean over the common seeds of an arm's score minus the reference's; None without a common seed.

    Args:
      scores: all scores.
      arm: the arm.
      reference: the arm that it is compared with.
      score: names task, metric and filter.
    """
    mine, theirs = (
        {seed: own.value for seed, own in scores_by_seed(scores, each, score).items()} for each in (arm, reference)
    )
    return difference_by_seed(mine, theirs, bounds_of(scores, score))


def difference_over_items(
    scores: TaskScores, arm: ArmResult, reference: ArmResult, score: TaskScore
) -> dict[int, PairedDifference]:
    """The means over items of an arm's run minus the reference's run with the same seed.

    Args:
      scores: all scores.
      arm: the arm.
      reference: the arm that it is compared with.
      score: names task, metric and filter.

    Returns:
      The difference of each seed; empty for a metric that items do not have.
    """
    theirs = {run.seed: scores.runs.get(run.folder) for run in reference.finished}
    found = {}
    for run in arm.finished:
        own, other = scores.runs.get(run.folder), theirs.get(run.seed)
        if own is not None and other is not None:
            found[run.seed] = paired_difference(other, own, score.task, score.metric, score.filter)
    return {seed: each for seed, each in found.items() if each is not None}


def score_notes(comparison: Comparison, budget: Budget) -> list[str]:
    """Which arms and runs have no scores on tasks, and why, in sentences.

    Args:
      comparison: the comparison.
      budget: the budget whose arms are meant.
    """
    scores = comparison.scores
    if scores is None:
        return []
    arms = [f"{arm.name} {scores.left_out[arm.name]}." for arm in budget.arms if arm.name in scores.left_out]
    runs = [
        f"{arm.name}, seed {run.seed}, has no scores on tasks: {scores.errors[run.folder]}"
        for arm in budget.arms
        for run in arm.finished
        if run.folder in scores.errors
    ]
    return arms + runs


def score_values(comparison: Comparison, budget: Budget, arm: ArmResult) -> list[dict[str, Any]]:
    """An arm's scores as JSON-ready values: means, intervals, differences, and every seed's own with errors over items.

    Args:
      comparison: the comparison.
      budget: the budget of the arm.
      arm: the arm.
    """
    scores = comparison.scores
    if scores is None:
        return []
    reference, values = budget.arm(comparison.reference), []
    for score in scores.every:
        by_seed = scores_by_seed(scores, arm, score)
        if not by_seed:
            continue
        apart = None if arm is reference else score_difference(scores, arm, reference, score)
        items = {} if arm is reference else difference_over_items(scores, arm, reference, score)
        some = next(iter(by_seed.values()))
        named = {name: getattr(some, name) for name in ("task", "metric", "filter", "items", "shots", "version")}
        values.append(
            named
            | interval_values(mean_score(scores, arm, score))
            | {
                "difference": interval_values(apart),
                "by_seed": {
                    str(seed): {
                        "value": own.value,
                        "standard_error": own.standard_error,
                        "difference": None if seed not in items else items[seed].mean,
                        "difference_standard_error": None if seed not in items else items[seed].standard_error,
                    }
                    for seed, own in by_seed.items()
                },
            }
        )
    return values


def interval_values(found: Estimate | None) -> dict[str, Any]:
    """A mean with its interval as JSON-ready values.

    Args:
      found: the mean; None if there is none.
    """
    if found is None:
        return {"mean": None, "low": None, "high": None, "seeds": 0}
    return {"mean": found.mean, "low": found.low, "high": found.high, "seeds": found.count}
