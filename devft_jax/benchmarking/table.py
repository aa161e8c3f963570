"""Scores of models as lines of text: values with standard errors, and differences over the same items."""

from collections.abc import Mapping

from devft_jax.harness.results import PairedDifference, Results, TaskScore, paired_difference
from devft_jax.reporting.table import table


def comparison(first: Results, other: Results, score: TaskScore) -> PairedDifference | None:
    """How much better a model does than the first by one score; None where items have no value of their own.

    Args:
      first: what is compared with.
      other: the model's results.
      score: names task, metric and filter.
    """
    return paired_difference(first, other, score.task, score.metric, score.filter)


def shown_scores(models: Mapping[str, Results]) -> list[str]:
    """A table with a line for every metric of every task, without the tasks of a group that has a score of its own.

    Args:
      models: results by the models' names; the first is the one that the others are compared with.
    """
    names = list(models)
    first = models[names[0]]
    scored = {score.task for score in first.scores}
    inside = {leaf for group, leaves in first.members.items() if group in scored for leaf in leaves}
    inside |= {group for group in first.members if group in scored and _is_inner(group, first)}
    columns = ["task", "metric", "shots", "items"]
    for number, name in enumerate(names, 1):
        label = name if len(names) == 1 else f"[{number}]"
        columns += [label] if number == 1 else [label, f"[{number}] - [1]"]
    rows = [columns]
    for score in first.scores:
        if score.task in inside:
            continue
        row = [score.task, _metric(score), "" if score.shots is None else str(score.shots), str(score.items)]
        for number, name in enumerate(names):
            own = _same(models[name], score)
            row.append("" if own is None else with_error(own.value, own.standard_error))
            if number and own is not None:
                difference = comparison(first, models[name], own)
                row.append("" if difference is None else with_error(difference.mean, difference.standard_error, sign=True))
        rows.append(row)
    legend = [] if len(names) == 1 else [f"[{number}] {name}" for number, name in enumerate(names, 1)]
    return [*table(rows), "value and standard error; differences over the same items", *legend]


def _is_inner(group: str, results: Results) -> bool:
    """Whether all tasks of a group are in a larger one that has a score, too."""
    own = set(results.members[group])
    scored = {score.task for score in results.scores}
    return any(own < set(leaves) for other, leaves in results.members.items() if other in scored)


def _metric(score: TaskScore) -> str:
    return score.metric if score.filter == "none" else f"{score.metric} ({score.filter})"


def _same(results: Results, score: TaskScore) -> TaskScore | None:
    """The score of the same task, metric and filter."""
    wanted = score.task, score.metric, score.filter
    return next((each for each in results.scores if (each.task, each.metric, each.filter) == wanted), None)


def with_error(value: float, error: float | None, *, sign: bool = False) -> str:
    """A value with its standard error, such as 0.412 ± 0.011.

    Args:
      value: the value.
      error: its standard error; None for none.
      sign: whether a plus is written before a positive value.
    """
    shown = f"{value:+.4f}" if sign else f"{value:.4f}"
    return shown if error is None else f"{shown} ± {error:.4f}"
