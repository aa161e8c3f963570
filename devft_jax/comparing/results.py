"""The parts of a comparison: runs, arms over seeds, budgets of arms, and the comparison itself; plain results.

All statements are computed from these: `devft_jax.comparing.measures` has the figures, `tables` and `verdict` show them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from devft_jax.comparing.arms import total_rounds
from devft_jax.config.run_config import RunConfig
from devft_jax.harness.results import Results, TaskScore
from devft_jax.storage.records import RunRecord
from devft_jax.storage.result_records import ScoreRecord


@dataclass(frozen=True)
class Point:
    """The full model's held-out loss during a run, and the costs up to then.

    Attributes:
      round: rounds done.
      seconds: seconds of training.
      bytes_up: bytes of all messages from clients.
      train_flops: counted operations.
      loss: nats per token.
      alike: whether all arms were evaluated at this round.
      simulated: simulated seconds of the rounds; 0 without a fleet.
    """

    round: int
    seconds: float
    bytes_up: float
    train_flops: float
    loss: float
    alike: bool = True
    simulated: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes:
      seed: seed of the run.
      folder: the run's folder.
      record: its `summary.json`; None if it failed.
      curve: measurements of the full model, starting with the untuned base.
      error: why it failed, in a sentence; None if it did not.
      scores: (rounds done, scores on benchmark tasks) of every full model that was scored, starting with the untuned base.
    """

    seed: int
    folder: str
    record: RunRecord | None = None
    curve: Sequence[Point] = ()
    error: str | None = None
    scores: Sequence[tuple[int, Sequence[ScoreRecord]]] = ()

    @property
    def finished(self) -> bool:
        """Whether the run has results."""
        return self.record is not None

    @property
    def final_loss(self) -> float | None:
        """Held-out loss of the full model at the end of the run; None if it failed or nothing is held out."""
        return None if self.record is None else self.record.final_loss


def judged_alike(outcome: Outcome, every: int) -> Outcome:
    """The run with its measurements marked at the rounds at which all arms were evaluated.

    If one of these is missing, as in a run made earlier for another comparison, none is marked.

    Args:
      outcome: the run.
      every: all arms were evaluated every so many rounds, from 0 on; 0 if there are no such rounds.
    """
    rounds = {point.round for point in outcome.curve}
    wanted = set(range(0, max(rounds, default=0) + 1, every)) if every else set()
    grid = wanted if wanted <= rounds else set()
    return dataclasses.replace(
        outcome, curve=[dataclasses.replace(point, alike=point.round in grid) for point in outcome.curve]
    )


@dataclass(frozen=True)
class ArmResult:
    """One method under one budget.

    Attributes:
      name: name of the arm.
      config: configuration of its runs; seed and folder are those of one of them.
      changes: its options that differ from the common ones, without `algorithm`, `growth` and what `note` says.
      note: how its rounds or rank were chosen.
      outcomes: one run per seed.
      pools: whether all clients' examples are in one place, so that nothing is sent.
      tuning: held-out loss on the tuning seed by learning rate, None for a failed run; None if nothing was tuned.
    """

    name: str
    config: RunConfig
    changes: Mapping[str, Any]
    note: str
    outcomes: Sequence[Outcome]
    pools: bool = False
    tuning: Mapping[float, float | None] | None = None

    @property
    def rounds(self) -> int:
        """Rounds of all stages."""
        return total_rounds(self.config)

    @property
    def finished(self) -> list[Outcome]:
        """The runs that have results."""
        return [outcome for outcome in self.outcomes if outcome.finished]

    @property
    def records(self) -> dict[int, RunRecord]:
        """The records of the runs that have results, by seed."""
        return {run.seed: run.record for run in self.outcomes if run.record is not None}

    @property
    def personal(self) -> bool:
        """Whether its loss is the mean over the clients' own models."""
        return any(record.personal_models for record in self.records.values())


@dataclass(frozen=True)
class Budget:
    """All methods under one budget.

    Attributes:
      kind: rounds or bytes.
      text: the budget in words.
      arms: the arms that fit.
      left_out: a sentence on each arm that does not fit.
    """

    kind: str
    text: str
    arms: Sequence[ArmResult]
    left_out: Sequence[str] = ()

    def arm(self, name: str) -> ArmResult:
        """The arm of this name.

        Args:
          name: name of the arm.
        """
        return next(arm for arm in self.arms if arm.name == name)


@dataclass(frozen=True)
class ListedRun:
    """A run in the list of a comparison's runs.

    Attributes:
      arm: its arm, under the first budget that it serves.
      run: the run.
      budgets: kinds of all budgets that it serves.
    """

    arm: ArmResult
    run: Outcome
    budgets: tuple[str, ...]


@dataclass(frozen=True)
class TaskScores:
    """The scores of a comparison's final models on benchmark tasks.

    Attributes:
      base: scores of the untuned base; None if they are missing.
      runs: scores of final models, by the run's folder.
      errors: why a run has no scores, by its folder.
      left_out: why an arm is not scored, by its name.
      asked: the tasks and how they are run, as plain values.
    """

    base: Results | None = None
    runs: Mapping[str, Results] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def all(self) -> list[Results]:
        """The base's scores and those of all runs."""
        return [*([] if self.base is None else [self.base]), *self.runs.values()]

    @property
    def shown(self) -> list[TaskScore]:
        """A score of each task and metric, without the tasks of a group that has a score of its own."""
        return next((found.outermost for found in self.all), [])

    @property
    def every(self) -> list[TaskScore]:
        """A score of each task and metric."""
        return next((found.scores for found in self.all), [])


@dataclass(frozen=True)
class Comparison:
    """The results of a comparison.

    Attributes:
      budgets: one or two, with the same arms.
      reference: the arm to which differences are computed.
      seeds: seeds of the runs.
      target: held-out loss that runs should reach; None if it is not known.
      target_given: whether the user gave it; if not, it is the mean of the reference's final losses under the first
        budget.
      tuning_seeds: seeds of the search for a learning rate; empty if there was none.
      rates: rates of that search; empty if there was none.
      common: the options that all arms share.
      command: the command that made the comparison.
      scores: scores on benchmark tasks; None if none were asked for.
    """

    budgets: Sequence[Budget]
    reference: str
    seeds: Sequence[int]
    target: float | None
    target_given: bool
    tuning_seeds: Sequence[int]
    rates: Sequence[float]
    common: RunConfig
    command: str
    scores: TaskScores | None = None

    @property
    def runs(self) -> list[ListedRun]:
        """Every run once, budget by budget."""
        found: dict[tuple[str, int, str], ListedRun] = {}
        for budget in self.budgets:
            for arm in budget.arms:
                for run in arm.outcomes:
                    key = (arm.name, run.seed, run.folder)
                    listed = found.get(key, ListedRun(arm, run, ()))
                    found[key] = dataclasses.replace(listed, budgets=(*listed.budgets, budget.kind))
        return list(found.values())

    @property
    def judged_apart(self) -> list[str]:
        """The arms with a run that was evaluated, but not at the common rounds."""
        apart = [
            arm.name
            for budget in self.budgets
            for arm in budget.arms
            for run in arm.finished
            if run.curve and not any(point.alike for point in run.curve)
        ]
        return list(dict.fromkeys(apart))
