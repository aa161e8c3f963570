"""What a comparison is made of: runs, arms over seeds, budgets of arms, and the comparison itself; plain results.

Everything that is said of them is arithmetic: `devft_jax.comparing.measures` has the figures, `tables` and `verdict` show
them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from devft_jax.comparing.arms import total_rounds
from devft_jax.config.run_config import RunConfig
from devft_jax.storage.records import RunRecord


@dataclass(frozen=True)
class Point:
    """The full model's held-out loss along a run, and what had been spent by then.

    Attributes:
      round: rounds done.
      seconds: of training.
      bytes_up: of all messages from clients.
      train_flops: counted operations.
      loss: nats per token.
      alike: whether it is one of the rounds at which all arms were judged.
    """

    round: int
    seconds: float
    bytes_up: float
    train_flops: float
    loss: float
    alike: bool = True


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes:
      seed: its seed.
      folder: where it lies.
      record: its `summary.json`; None where it failed.
      curve: measurements of the full model, from the untuned base on.
      error: why it failed, in a sentence; None where it did not.
    """

    seed: int
    folder: str
    record: RunRecord | None = None
    curve: Sequence[Point] = ()
    error: str | None = None

    @property
    def finished(self) -> bool:
        """Whether it has results."""
        return self.record is not None

    @property
    def final_loss(self) -> float | None:
        """Held-out loss of the full model at the run's end; None where it failed or nothing is held out."""
        return None if self.record is None else self.record.final_loss


def judged_alike(outcome: Outcome, every: int) -> Outcome:
    """The run with its measurements marked at the rounds at which all arms were judged.

    Where one of these is missing, as in a run that was made before for another comparison, none is marked.

    Args:
      outcome: the run.
      every: all arms were judged every so many rounds, from 0 on; 0 where there are no such rounds.
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
      name: the arm's.
      config: of its runs; seed and folder are those of one of them.
      changes: plain options of it that are not the common ones, besides `algorithm`, `growth` and what `note` says.
      note: how its rounds or rank came about.
      outcomes: a run for each seed.
      pools: whether it holds all clients' examples in one place, so that nothing has to travel.
      tuning: held-out loss on the tuning seed by learning rate, None where the run failed; None where nothing was tuned.
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
        """Of all stages."""
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
        """Whether its loss is the mean over clients' own models."""
        return any(record.personal_models for record in self.records.values())


@dataclass(frozen=True)
class Budget:
    """All methods under one budget.

    Attributes:
      kind: rounds or bytes.
      text: what the budget is, in words.
      arms: those that fit.
      left_out: a sentence on each that does not.
    """

    kind: str
    text: str
    arms: Sequence[ArmResult]
    left_out: Sequence[str] = ()

    def arm(self, name: str) -> ArmResult:
        """One of its arms.

        Args:
          name: the arm's.
        """
        return next(arm for arm in self.arms if arm.name == name)


@dataclass(frozen=True)
class ListedRun:
    """A run among those of a comparison.

    Attributes:
      arm: whose it is, under the first budget that it serves.
      run: the run.
      budgets: kinds of all budgets that it serves.
    """

    arm: ArmResult
    run: Outcome
    budgets: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """What was compared.

    Attributes:
      budgets: one or two, with the same arms.
      reference: the arm that differences are to.
      seeds: of the runs.
      target: held-out loss that runs are to reach; None where it is not known.
      target_given: whether somebody asked for it; else it is the mean of the reference's final losses under the first
        budget.
      tuning_seed: of the search for a learning rate; None where there was none.
      rates: of that search; empty where there was none.
      common: the options that all arms share.
      command: that made it.
    """

    budgets: Sequence[Budget]
    reference: str
    seeds: Sequence[int]
    target: float | None
    target_given: bool
    tuning_seed: int | None
    rates: Sequence[float]
    common: RunConfig
    command: str

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
        """The arms with a run that was judged, but not at the rounds at which all are."""
        apart = [
            arm.name
            for budget in self.budgets
            for arm in budget.arms
            for run in arm.finished
            if run.curve and not any(point.alike for point in run.curve)
        ]
        return list(dict.fromkeys(apart))
