"""Scores of models as lines of text: values with standard errors, and differences over the same items."""

from collections.abc import Mapping

from devft_jax.harness.results import PairedDifference, Results, TaskScore, paired_difference
from devft_jax.reporting.table import table
from devft_jax.reporting.units import with_error


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
    columns = ["task", "metric", "shots", "items"]
    for number, name in enumerate(names, 1):
        label = name if len(names) == 1 else f"[{number}]"
        columns += [label] if number == 1 else [label, f"[{number}] - [1]"]
    rows = [columns]
    for score in first.outermost:
        row = [score.task, score.shown_metric, "" if score.shots is None else str(score.shots), str(score.items)]
        for number, name in enumerate(names):
            own = models[name].find(score.task, score.metric, score.filter)
            row.append("" if own is None else with_error(own.value, own.standard_error))
            if number and own is not None:
                difference = comparison(first, models[name], own)
                row.append("" if difference is None else with_error(difference.mean, difference.standard_error, sign=True))
        rows.append(row)
    legend = [] if len(names) == 1 else [f"[{number}] {name}" for number, name in enumerate(names, 1)]
    return [*table(rows), "value and standard error; differences over the same items", *legend]
