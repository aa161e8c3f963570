"""The figures of runs that are compared: how each is found, written and bounded, and its mean and differences over seeds.

A figure is a mean over seeds with the 95 % interval of the mean; a difference is the mean over seeds of an arm's run less
the reference's run with the same seed (`devft_jax.comparing.statistics`). A seed that failed or did not reach the target is
counted, never filled in.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from devft_jax.comparing.results import ArmResult, Budget, Comparison, Outcome, Point
from devft_jax.comparing.statistics import POSITIVE, SHARE, Bounds, Estimate, estimate, paired_difference
from devft_jax.reporting.units import BYTES, ENERGY, FLOPS, SECONDS, Units, unit_for
from devft_jax.storage.records import RunRecord


@dataclass(frozen=True)
class Form:
    """How figures of a kind are written: in units, or by digits and a factor.

    Attributes:
      units: from which the one is taken that suits the figure; None for a figure by digits.
      digits: behind the point.
      factor: by which it is multiplied.
      suffix: written behind it.
    """

    units: Units | None = None
    digits: int = 3
    factor: float = 1.0
    suffix: str = ""

    def shown(self, mean: float, interval: tuple[float, float] | None = None, *, sign: bool = False) -> str:
        """A mean as text, with its interval where that is known: as +- where both ends lie equally far by these digits.

        Args:
          mean: the figure.
          interval: its ends.
          sign: whether a positive figure has a sign, too.
        """
        size, unit, digits = 1 / self.factor, self.suffix, self.digits
        if self.units is not None:
            size, name = unit_for(abs(mean), self.units)
            unit = f" {name}"
            digits = 0 if name == "B" else 2 if abs(mean) / size < 9.995 else 1
        text = f"{mean / size:+,.{digits}f}" if sign else f"{mean / size:,.{digits}f}"
        if interval is None:
            return text + unit
        below, above = (f"{abs(end - mean) / size:,.{digits}f}" for end in interval)
        if below == above:
            return f"{text} \u00b1 {above}{unit}"
        ends = [f"{end / size:{'+' if sign else ''},.{digits}f}" for end in interval]
        return f"{text}{unit} ({ends[0]} to {ends[1]}{unit})"


LOSS, PERCENT, COUNT = Form(digits=3), Form(digits=1, factor=100, suffix="%"), Form(digits=1)

Figure = Callable[[Outcome, float | None], float | None]
"""Finds a figure of a finished run, given the target loss; None where the run does not have it."""


@dataclass(frozen=True)
class Measure:
    """A figure of a run.

    Attributes:
      name: in files.
      title: in tables.
      of: finds it.
      form: how it is written.
      optional: whether it is left out of tables where no run has it.
      bounds: where it can lie.
    """

    name: str
    title: str
    of: Figure
    form: Form
    optional: bool = False
    bounds: Bounds = POSITIVE


def _recorded(of: Callable[[RunRecord], float | None]) -> Figure:
    return lambda outcome, target: None if outcome.record is None else of(outcome.record)


def reached(outcome: Outcome, target: float | None) -> Point | None:
    """The first measurement at or below the target, of those that all arms have and the run's end.

    More measurements than the others have would let a run arrive earlier. Of a run that lacks the common ones, all count.

    Args:
      outcome: a run.
      target: held-out loss, nats per token; None where there is no target.

    Returns:
      The measurement; None where none is.
    """
    if target is None:
        return None
    common = [point for point in outcome.curve if point.alike]
    counted = [*common, *outcome.curve[-1:]] if common else outcome.curve
    return next((point for point in counted if point.loss <= target), None)


def _at_target(spent: Callable[[Point], float]) -> Figure:
    def of(outcome: Outcome, target: float | None) -> float | None:
        point = reached(outcome, target)
        return None if point is None else spent(point)

    return of


def _own_loss(record: RunRecord) -> float | None:
    """The mean loss of the clients' own models, where there is a global one besides."""
    return None if record.personal is None or record.personal_models else statistics.fmean(record.personal.losses)


def _kwh(record: RunRecord) -> float | None:
    return None if record.energy is None else record.energy.kwh


def _with_compiling(record: RunRecord) -> float:
    """Seconds of rounds, of compiling and of building stages."""
    return record.seconds.train + record.seconds.compile + record.seconds.build


FINAL_LOSS = Measure("final_loss", "held-out loss", _recorded(lambda record: record.final_loss), LOSS)
OWN_LOSS = Measure("own_loss", "clients' own models", _recorded(_own_loss), LOSS, optional=True)
BYTES_UP = Measure("bytes_up", "sent up", _recorded(lambda record: record.bytes_up), Form(BYTES))
TRAIN_FLOPS = Measure("train_flops", "training work", _recorded(lambda record: record.train_flops), Form(FLOPS))

LEARNED = (
    FINAL_LOSS,
    Measure("accuracy", "exact match", _recorded(lambda record: record.accuracy), PERCENT, bounds=SHARE),
    OWN_LOSS,
)
COSTS = (
    BYTES_UP,
    Measure("bytes_down", "sent down", _recorded(lambda record: record.bytes_down), Form(BYTES)),
    Measure("bytes_stage", "stages down", _recorded(lambda record: record.bytes_stage), Form(BYTES)),
    TRAIN_FLOPS,
    Measure("seconds_train", "training", _recorded(lambda record: record.seconds.train), Form(SECONDS)),
    Measure("seconds_total", "with compiling", _recorded(_with_compiling), Form(SECONDS)),
    Measure("peak_memory_bytes", "peak memory", _recorded(lambda record: record.peak_memory_bytes), Form(BYTES)),
    Measure("kwh", "energy", _recorded(_kwh), Form(ENERGY), optional=True),
)
TO_TARGET = (
    Measure("rounds_to_target", "rounds", _at_target(lambda point: point.round), COUNT),
    Measure("bytes_to_target", "sent up", _at_target(lambda point: point.bytes_up), Form(BYTES)),
    Measure("flops_to_target", "training work", _at_target(lambda point: point.train_flops), Form(FLOPS)),
    Measure("seconds_to_target", "training", _at_target(lambda point: point.seconds), Form(SECONDS)),
)
MEASURES = (*LEARNED, *COSTS, *TO_TARGET)


def by_seed(arm: ArmResult, measure: Measure, target: float | None) -> dict[int, float]:
    """A measure of an arm's runs.

    Args:
      arm: the arm.
      measure: the figure.
      target: held-out loss that runs are to reach; None where there is none.

    Returns:
      The figure for each seed that has it.
    """
    found = {outcome.seed: measure.of(outcome, target) for outcome in arm.finished}
    return {seed: float(value) for seed, value in found.items() if value is not None}


def mean_of(arm: ArmResult, measure: Measure, target: float | None = None) -> Estimate | None:
    """The mean of a measure over an arm's seeds, with its interval.

    Args:
      arm: the arm.
      measure: the figure.
      target: held-out loss that runs are to reach; None where there is none.

    Returns:
      The mean; None where no run has the figure.
    """
    return estimate(list(by_seed(arm, measure, target).values()), measure.bounds)


def difference(comparison: Comparison, budget: Budget, arm: ArmResult, measure: Measure) -> Estimate | None:
    """The mean over the common seeds of an arm's figure less the reference's, under the same budget.

    Args:
      comparison: names the reference and the target.
      budget: the budget.
      arm: one of its arms.
      measure: the figure.

    Returns:
      The mean with its interval; None for the reference itself, or without a seed that both have.
    """
    if arm.name == comparison.reference:
        return None
    reference = budget.arm(comparison.reference)
    mine, theirs = (by_seed(each, measure, comparison.target) for each in (arm, reference))
    return paired_difference(mine, theirs, measure.bounds)


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of the points that no other is at most as large as in both and smaller in one.

    Args:
      points: two figures, of which less is better, by name.

    Returns:
      The names by their first figure.
    """

    def dominated(name: str) -> bool:
        mine = points[name]
        return any(theirs != mine and theirs[0] <= mine[0] and theirs[1] <= mine[1] for theirs in points.values())

    return sorted((name for name in points if not dominated(name)), key=lambda name: points[name])


def front_points(budget: Budget, measure: Measure) -> dict[str, tuple[float, float]]:
    """Mean cost and mean held-out loss of every arm that has both.

    Args:
      budget: the budget.
      measure: the cost.
    """
    points = {}
    for arm in budget.arms:
        cost, loss = mean_of(arm, measure), mean_of(arm, FINAL_LOSS)
        if cost is not None and loss is not None:
            points[arm.name] = (cost.mean, loss.mean)
    return points


def fronts(budget: Budget, measure: Measure) -> list[str]:
    """The arms on the Pareto front of mean loss and mean cost; what holds all data in one place is no rival in bytes.

    Args:
      budget: the budget.
      measure: the cost.
    """
    rivals = {name: point for name, point in front_points(budget, measure).items() if not budget.arm(name).pools}
    return pareto(rivals)
