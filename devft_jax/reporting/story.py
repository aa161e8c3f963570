"""The contents of a run's folder: its records, which must be consistent, and running totals over all of its rounds.

Within a stage of a growing run the submodel is evaluated. The full model is evaluated before the first round, at the end of
stages, after transfer, and with `evaluate_full` within the stages; in a stage at full depth the two are the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby

from devft_jax.config.run_config import RunConfig
from devft_jax.errors import InputError
from devft_jax.reporting.units import BYTES, FLOPS, SECONDS, Units, unit_for
from devft_jax.storage.records import RoundRecord, RunRecord, StageRecord
from devft_jax.storage.result_records import PersonalRecord
from devft_jax.storage.split_record import SplitRecord

Column = Callable[[RoundRecord], float]
"""A figure of a round."""


def both_ways(row: RoundRecord) -> int:
    """Bytes of a round's messages in both directions."""
    return row.bytes_up + row.bytes_down


def simulated_seconds(row: RoundRecord) -> float:
    """Simulated seconds of a round; 0 without a fleet."""
    return 0.0 if row.simulated is None else row.simulated.seconds


@dataclass(frozen=True)
class Axis:
    """A running total in a suitable unit: `values[k]` after k rounds, from 0.

    Attributes:
      name: name of the quantity.
      unit: unit of the values; empty for plain numbers.
      values: the total after 0, 1, ... rounds.
    """

    name: str
    unit: str
    values: Sequence[float]

    @property
    def label(self) -> str:
        """The axis's label."""
        return f"{self.name}, {self.unit}" if self.unit else self.name


@dataclass(frozen=True)
class Stage:
    """A stage: its record and the lines of its rounds so far.

    Attributes:
      number: from 1.
      record: its totals and losses.
      rows: its rounds so far.
    """

    number: int
    record: StageRecord
    rows: Sequence[RoundRecord]
    first: int
    """Rounds of the run before the stage."""

    @property
    def layers(self) -> int:
        """Depth of its submodel."""
        return self.record.layers

    @property
    def is_full(self) -> bool:
        """Whether the submodel is the model itself."""
        return self.record.runs_base

    @property
    def is_fused(self) -> bool:
        """Whether any of its layers represents several of the model's; if not, each is one of them, and others are
        absent."""
        return any(size > 1 for size in self.record.group_sizes)

    @property
    def last(self) -> int:
        """Rounds of the run up to the end of the stage, or so far."""
        return self.first + len(self.rows)

    @property
    def groups(self) -> list[list[int]]:
        """The layers of each group."""
        return self.record.groups


@dataclass(frozen=True)
class Evaluated:
    """A held-out measurement after `round` rounds; `stage` from 1, 0 before the first.

    Attributes:
      round: the round after which it was made.
      stage: from 1, 0 before the first.
      loss: nats per token.
      accuracy: share of examples answered exactly; None if it was not measured.
    """

    round: int
    stage: int
    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class Story:
    """A run as recorded in its folder.

    Attributes:
      name: name of the folder.
      config: options of the run, from `config.json`.
      objects: the parts that were passed as objects in Python, by name.
      record: contents of `summary.json`, or of `record.json` while unfinished.
      rows: the lines of `metrics.jsonl`, at least one.
      split: contents of `split.json`.
      finished: whether all rounds are done.
      cut_off: whether the last line of `metrics.jsonl` is incomplete.
    """

    name: str
    config: RunConfig
    objects: Mapping[str, str]
    record: RunRecord
    rows: Sequence[RoundRecord]
    split: SplitRecord
    finished: bool
    cut_off: bool

    @property
    def rounds(self) -> int:
        """Rounds done."""
        return len(self.rows)

    @property
    def planned(self) -> int:
        """Rounds of the whole run."""
        return sum(self.record.stage_rounds)

    @property
    def depth(self) -> int:
        """Layers of the full model."""
        return len(self.record.stages[0].assign)

    @property
    def participants(self) -> int:
        """Clients per round, the most of any round; one if a single client holds the examples of all."""
        return max(len(row.clients) for row in self.rows)

    @property
    def personal(self) -> PersonalRecord | None:
        """Held-out `losses` and `accuracies` of the clients' own models and their spreads, at the end of the last stage."""
        return self.record.personal

    @property
    def is_personal(self) -> bool:
        """Whether every client has a model of its own; the held-out figures are then means over these."""
        return self.record.personal_models

    @property
    def lengthened_after(self) -> int:
        """The last round of the run before it was lengthened; 0 if it was not."""
        return self.record.lengthened_after

    @property
    def resumes(self) -> list[int]:
        """The rounds after which the run was resumed."""
        return [after for after in self.record.resumed_after if after <= self.rounds]

    @cached_property
    def stages(self) -> list[Stage]:
        """All stages that have begun, in order."""
        rows = {number: list(part) for number, part in groupby(self.rows, key=lambda row: row.stage)}
        firsts = accumulate((len(rows.get(number, ())) for number in range(len(self.record.stages))), initial=0)
        records = zip(self.record.stages, firsts, strict=False)
        return [Stage(number + 1, record, rows.get(number, ()), first) for number, (record, first) in enumerate(records)]

    @property
    def is_grown(self) -> bool:
        """Whether any stage trains a submodel."""
        return any(not stage.is_full for stage in self.stages)

    @property
    def is_fused(self) -> bool:
        """Whether submodels consist of groups of layers, not of some of the layers unchanged."""
        return any(stage.is_fused for stage in self.stages)

    def total(self, column: Column) -> list[float]:
        """The running total of a column: [rounds + 1], from 0."""
        return list(accumulate((column(row) for row in self.rows), initial=0))

    @cached_property
    def axes(self) -> list[Axis]:
        """The x axes of the learning curves: rounds, seconds of training, bytes of messages, if any, operations, and on a
        fleet simulated time."""
        drawn = [Axis("rounds", "", list(range(self.rounds + 1)))]
        costs: list[tuple[str, Column, Units]] = [
            ("training time", lambda row: row.seconds, SECONDS),
            ("messages up and down", both_ways, BYTES),
            ("training operations", lambda row: row.train_flops, FLOPS),
            ("simulated time", simulated_seconds, SECONDS),
        ]
        for name, column, units in costs:
            totals = self.total(column)
            if not totals[-1]:
                continue
            size, unit = unit_for(totals[-1], units)
            drawn.append(Axis(name, unit, [value / size for value in totals]))
        return drawn

    @cached_property
    def full_model(self) -> list[list[Evaluated]]:
        """Measurements of the full model, in pieces joined by lines: the beginning (the untuned base, or the adapter with
        which the run began), stage borders, and each stage at full depth."""
        record, points = self.record, []
        if record.start_loss is not None:
            points.append(Evaluated(0, 0, record.start_loss, record.start_accuracy))
        elif record.base_loss is not None:
            points.append(Evaluated(0, 0, record.base_loss, record.base_accuracy))
        for stage in self.stages:
            points += _within(stage, full=not stage.is_full)
            if stage.record.loss_full_after_transfer is not None:
                accuracy = stage.record.accuracy_full_after_transfer
                points.append(Evaluated(stage.last, stage.number, stage.record.loss_full_after_transfer, accuracy))
        return [points] if points else []

    @cached_property
    def submodels(self) -> list[list[Evaluated]]:
        """Measurements of the submodels, one piece for each stage that has any."""
        pieces = []
        for stage in self.stages:
            if stage.is_full:
                continue
            start = stage.record.loss_start
            piece = [] if start is None else [Evaluated(stage.first, stage.number, start, None)]
            piece += _within(stage, full=False)
            if stage.record.loss_end is not None:
                piece.append(Evaluated(stage.last, stage.number, stage.record.loss_end, None))
            pieces.append(piece)
        return [piece for piece in pieces if piece]

    @property
    def deepest(self) -> Stage:
        """The deepest stage that has rounds; the last one if there are several."""
        return max((stage for stage in self.stages if stage.rows), key=lambda stage: (stage.layers, stage.number))


def _within(stage: Stage, *, full: bool) -> Iterator[Evaluated]:
    """What was evaluated between the stage's rounds: its own model, or the full one if it was evaluated."""
    for row in stage.rows:
        loss, accuracy = (row.full_loss, row.full_accuracy) if full else (row.held_out_loss, row.held_out_accuracy)
        if loss is not None:
            yield Evaluated(row.round, stage.number, loss, accuracy)


def check(story: Story, path: str) -> None:
    """Raise `InputError` unless the records are consistent.

    Args:
      story: the run.
      path: the run's folder, for messages.
    """
    stages, clients = story.record.stages, len(story.split.clients)
    rounds = [row.round for row in story.rows]
    problems = {
        "metrics.jsonl is not one line for each round": rounds != list(range(1, len(rounds) + 1)),
        "metrics.jsonl has rounds of stages that its record lacks": any(
            row.stage not in range(len(stages)) or row.layers != stages[row.stage].layers for row in story.rows
        ),
        "its stages are of models of different depths": len({len(stage.assign) for stage in stages}) > 1,
        "metrics.jsonl names clients that split.json lacks": any(
            max(row.clients, default=0) >= clients for row in story.rows
        ),
        "metrics.jsonl has norms for another number of layers": any(
            len(row.adapter_norms) != row.layers for row in story.rows
        ),
    }
    for problem, found in problems.items():
        if found:
            raise InputError(f"the records in {path} are inconsistent ({problem}); run it again in another folder.")
