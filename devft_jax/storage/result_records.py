"""Records of measurements in a run's folder: clients' own models on held-out data, scores on benchmark tasks, and what
stages promise."""

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
class GainRecord(Record):
    """What a stage and the next one promise, measured after one of its rounds (`devft_jax.training.gain`).

    Attributes:
      round: the round, from 1, over all stages.
      alignment: cosine of the full model's gradient and the stage's, transferred as the growth does; None if not finite.
      next_alignment: as `alignment`, of the next stage as it would begin now.
      next_layers: layers of the next stage's submodel that have an adapter.
      cost: of a client's round in the stage: bytes of its messages both ways, or operations of its training.
      next_cost: as `cost`, of the next stage.
      ended: whether the stage ended here for the next one.
      server_flops: the server's counted operations for this measurement.
      seconds: that it took, without compilation.
    """

    where = "a measured gain of its record"

    round: int
    alignment: float | None
    next_alignment: float | None
    next_layers: int
    cost: float
    next_cost: float
    ended: bool
    server_flops: int
    seconds: float

    @property
    def ratio(self) -> float | None:
        """What the next stage promises per cost, in units of what this one does; None if this one promises nothing."""
        if self.alignment is None or self.next_alignment is None or self.alignment <= 0:
            return None
        return self.next_alignment / self.next_cost / (self.alignment / self.cost)


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
