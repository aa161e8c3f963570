"""Scores of tasks, their standard errors, and the value of every item, by which two models are compared item by item."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task or group of tasks.

    Attributes:
      task: its name.
      metric: such as acc or exact_match.
      filter: what picked the answer out of a text; "none" for tasks without.
      value: mean over the items.
      standard_error: of it; None where there is none, as for a single item.
      items: how many there are.
      shots: worked examples before each question; None for a group whose tasks differ.
      version: of the task, as the harness counts them.
      higher_is_better: None where the task does not say.
    """

    task: str
    metric: str
    filter: str
    value: float
    standard_error: float | None
    items: int
    shots: int | None
    version: str
    higher_is_better: bool | None

    @property
    def shown_metric(self) -> str:
        """The metric with its filter, if there is one."""
        return self.metric if self.filter == "none" else f"{self.metric} ({self.filter})"


@dataclass(frozen=True)
class Results:
    """What an evaluation found.

    Attributes:
      scores: of tasks and groups, in the harness's order.
      items: by (task, metric, filter), the value of each item by its number in the task.
      members: by a group's name, the tasks in it, those of its groups too.
    """

    scores: list[TaskScore]
    items: dict[tuple[str, str, str], dict[int, float]]
    members: dict[str, list[str]]

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Self:
        """The results in what the harness's `evaluate` returns.

        Args:
          found: with samples.
        """
        scores = []
        for name, values in found["results"].items():
            for key, value in values.items():
                metric, comma, chosen = key.partition(",")
                if not comma or metric.endswith("_stderr"):
                    continue
                error = values.get(f"{metric}_stderr,{chosen}")
                scores.append(
                    TaskScore(
                        task=name,
                        metric=metric,
                        filter=chosen,
                        value=float(value),
                        standard_error=float(error) if isinstance(error, int | float) else None,
                        items=int(values.get("sample_count", {}).get(key, values.get("sample_len", 0))),
                        shots=found["n-shot"].get(name),
                        version=str(found["versions"].get(name, "")),
                        higher_is_better=found["higher_is_better"].get(name, {}).get(metric),
                    )
                )
        items: dict[tuple[str, str, str], dict[int, float]] = {}
        for name, samples in found.get("samples", {}).items():
            for sample in samples:
                for metric in sample["metrics"]:
                    of_item: Any = sample[metric]
                    if isinstance(of_item, bool | int | float | list | np.generic):
                        of_metric = items.setdefault((name, metric, sample["filter"]), {})
                        of_metric[int(sample["doc_id"])] = float(np.mean(np.asarray(of_item, float)))
        groups: Mapping[str, list[str]] = found.get("group_subtasks", {})
        return cls(scores, items, {name: _leaves(name, groups) for name in groups})

    def values_of(self, task: str, metric: str, filter: str = "none") -> dict[tuple[str, int], float]:
        """The value of every item of a task or of the tasks of a group, by task and number.

        Args:
          task: its name.
          metric: the metric.
          filter: the filter.
        """
        names = self.members.get(task, [task])
        return {
            (name, number): value for name in names for number, value in self.items.get((name, metric, filter), {}).items()
        }

    def find(self, task: str, metric: str, filter: str = "none") -> TaskScore | None:
        """The score of a task or group by a metric; None if there is none.

        Args:
          task: its name.
          metric: the metric.
          filter: the filter.
        """
        wanted = task, metric, filter
        return next((each for each in self.scores if (each.task, each.metric, each.filter) == wanted), None)

    @property
    def outermost(self) -> list[TaskScore]:
        """The scores without those of tasks and groups inside a group that has a score of its own."""
        scored = {score.task for score in self.scores}
        groups = {name: set(leaves) for name, leaves in self.members.items() if name in scored}
        inside = {leaf for leaves in groups.values() for leaf in leaves}
        inside |= {name for name, own in groups.items() if any(own < leaves for leaves in groups.values())}
        return [score for score in self.scores if score.task not in inside]

    def to_plain(self) -> dict[str, Any]:
        """Everything as JSON-ready values."""
        items = [
            {
                "task": task,
                "metric": metric,
                "filter": filter,
                "values": {str(number): value for number, value in of.items()},
            }
            for (task, metric, filter), of in self.items.items()
        ]
        return {"scores": [asdict(score) for score in self.scores], "items": items, "members": self.members}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """The results whose values `to_plain` has given.

        Args:
          plain: these values; others beside them are ignored.
        """
        items = {
            (each["task"], each["metric"], each["filter"]): {int(key): value for key, value in each["values"].items()}
            for each in plain["items"]
        }
        return cls([TaskScore(**score) for score in plain["scores"]], items, dict(plain["members"]))


def _leaves(name: str, groups: Mapping[str, list[str]]) -> list[str]:
    """The tasks of a group and of the groups in it."""
    return [leaf for child in groups[name] for leaf in (_leaves(child, groups) if child in groups else [child])]


@dataclass(frozen=True)
class PairedDifference:
    """How much better one model does than another on the same items.

    Attributes:
      mean: of the differences.
      standard_error: of the mean; None for fewer than two items.
      items: how many both have.
    """

    mean: float
    standard_error: float | None
    items: int


def paired_difference(
    base: Results, other: Results, task: str, metric: str, filter: str = "none"
) -> PairedDifference | None:
    """The mean over items of `other` less `base`, with its standard error; None where they share no item.

    Args:
      base: what is compared against.
      other: what is compared.
      task: name of a task or group.
      metric: the metric.
      filter: the filter.
    """
    before, after = base.values_of(task, metric, filter), other.values_of(task, metric, filter)
    shared = sorted(before.keys() & after.keys())
    if not shared:
        return None
    differences = np.array([after[item] - before[item] for item in shared])
    error = float(differences.std(ddof=1) / len(shared) ** 0.5) if len(shared) > 1 else None
    return PairedDifference(float(differences.mean()), error, len(shared))
