"""Records of evaluations in a run's folder: clients' own models on held-out data, and scores on benchmark tasks."""

from dataclasses import dataclass, field

from devft_jax.storage.record import OMITTED, Record


@dataclass(kw_only=True)
class PersonalRecord(Record):
    """Held-out figures of the clients' own models.

    Attributes:
      loss: mean over clients, nats per token.
      accuracy: mean over clients of the share of examples answered exactly.
      losses: of every client, nats per token.
      accuracies: of every client.
      loss_spread: standard deviation over clients.
      accuracy_spread: standard deviation over clients.
    """

    where = "its record of clients' own models"

    loss: float
    accuracy: float
    losses: list[float]
    accuracies: list[float]
    loss_spread: float
    accuracy_spread: float


@dataclass(kw_only=True)
class BestRecord(Record):
    """The round of a run's last stage after which the full model had the lowest held-out loss; its checkpoint is kept.

    Attributes:
      round: from 1, over all stages.
      loss: the held-out loss after it.
      planned_rounds: rounds of the run that were planned before it was ended because no later round had a lower loss; None
        if it was not.
    """

    where = "the best round of its record"

    round: int
    loss: float
    planned_rounds: int | None = field(default=None, metadata=OMITTED)


@dataclass(kw_only=True)
class ScoreRecord(Record):
    """One metric of one benchmark task, or of a group of tasks.

    Attributes:
      task: its name.
      metric: such as acc or exact_match.
      filter: what picked the answer out of a text; "none" for tasks without.
      value: mean over the items.
      standard_error: of the mean; None where there is none, as for a single item.
      items: how many there are.
      shots: worked examples before each question; None for a group whose tasks differ.
      change: mean difference to the untuned base over the same items; None for the base, and where items have no value.
      change_error: standard error of `change`.
    """

    where = "a score of its record"

    task: str
    metric: str
    filter: str = "none"
    value: float
    standard_error: float | None = field(default=None, metadata=OMITTED)
    items: int
    shots: int | None = field(default=None, metadata=OMITTED)
    change: float | None = field(default=None, metadata=OMITTED)
    change_error: float | None = field(default=None, metadata=OMITTED)

    @property
    def name(self) -> tuple[str, str]:
        """Task and metric, the metric with its filter."""
        return self.task, self.metric if self.filter == "none" else f"{self.metric} ({self.filter})"
