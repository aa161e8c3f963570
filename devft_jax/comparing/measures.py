"""The figures by which runs are compared: how each is computed, formatted and bounded, and its mean and differences over
seeds.

A figure is a mean over seeds with the 95 % interval of the mean; a difference is the mean over seeds of an arm's run minus
the reference's run with the same seed (`devft_jax.comparing.statistics`). A seed that failed or did not reach the target is
reported in the count and not replaced.
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
    """The format of a figure: in units, or with fixed decimals and a factor.

    Attributes:
      units: units to choose from; None for fixed decimals.
      digits: number of decimals.
      factor: factor before formatting.
      suffix: text after the number.
    """

    units: Units | None = None
    digits: int = 3
    factor: float = 1.0
    suffix: str = ""

    def shown(self, mean: float, interval: tuple[float, float] | None = None, *, sign: bool = False) -> str:
        """A mean as text, with its interval if that is known: as +- if both ends are equally far away in these decimals.

        Args:
          mean: the figure.
          interval: ends of the interval.
          sign: whether a positive figure is shown with a sign.
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
"""Computes a figure of a finished run, given the target loss; None if the run does not have it."""


@dataclass(frozen=True)
class Measure:
    """A figure of a run.

    Attributes:
      name: name in files.
      title: title in tables.
      of: computes the figure.
      form: its format.
      optional: whether it is left out of tables if no run has it.
      bounds: the range of possible values.
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
    """The first measurement at or below the target, among those that all arms have and the end of the run.

    A run with more measurements than the others could reach the target earlier, so these are ignored. If a run lacks the
    common measurements, all of its own count.

    Args:
      outcome: a run.
      target: held-out loss, nats per token; None if there is no target.

    Returns:
      The measurement; None if there is none.
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
    """The mean loss of the clients' own models, if there is also a global one."""
    return None if record.personal is None or record.personal_models else statistics.fmean(record.personal.losses)


def _kwh(record: RunRecord) -> float | None:
    return None if record.energy is None else record.energy.kwh


def _simulated(record: RunRecord) -> float | None:
    """Simulated seconds of the rounds; None without a fleet."""
    return None if record.fleet is None else record.fleet.seconds


def _could_join(record: RunRecord) -> float | None:
    """Share of the clients whose devices have the memory to take part, mean over the rounds; None without a fleet."""
    stages = [(stage.rounds, stage.simulated) for stage in record.stages if stage.simulated is not None]
    rounds = sum(count for count, _ in stages)
    if not rounds:
        return None
    return sum(count * sum(stage.eligible.values()) for count, stage in stages) / (rounds * record.clients)


def _simulated_to_target(outcome: Outcome, target: float | None) -> float | None:
    """Simulated seconds up to the target loss; None without a fleet, or if the target was not reached."""
    point = reached(outcome, target)
    return None if point is None or outcome.record is None or outcome.record.fleet is None else point.simulated


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
    Measure("simulated_seconds", "simulated time", _recorded(_simulated), Form(SECONDS), optional=True),
    Measure("could_join", "could join", _recorded(_could_join), PERCENT, optional=True, bounds=SHARE),
)
TO_TARGET = (
    Measure("rounds_to_target", "rounds", _at_target(lambda point: point.round), COUNT),
    Measure("bytes_to_target", "sent up", _at_target(lambda point: point.bytes_up), Form(BYTES)),
    Measure("flops_to_target", "training work", _at_target(lambda point: point.train_flops), Form(FLOPS)),
    Measure("seconds_to_target", "training", _at_target(lambda point: point.seconds), Form(SECONDS)),
    Measure("simulated_to_target", "simulated time", _simulated_to_target, Form(SECONDS), optional=True),
)
MEASURES = (*LEARNED, *COSTS, *TO_TARGET)


def by_seed(arm: ArmResult, measure: Measure, target: float | None) -> dict[int, float]:
    """A measure of all runs of an arm.

    Args:
      arm: the arm.
      measure: the figure.
      target: held-out loss that runs should reach; None if there is none.

    Returns:
      The figure of each seed that has it.
    """
    found = {outcome.seed: measure.of(outcome, target) for outcome in arm.finished}
    return {seed: float(value) for seed, value in found.items() if value is not None}


def mean_of(arm: ArmResult, measure: Measure, target: float | None = None) -> Estimate | None:
    """The mean of a measure over an arm's seeds, with its interval.

    Args:
      arm: the arm.
      measure: the figure.
      target: held-out loss that runs should reach; None if there is none.

    Returns:
      The mean; None if no run has the figure.
    """
    return estimate(list(by_seed(arm, measure, target).values()), measure.bounds)


def difference(comparison: Comparison, budget: Budget, arm: ArmResult, measure: Measure) -> Estimate | None:
    """The mean over the common seeds of an arm's figure minus the reference's, under the same budget.

    Args:
      comparison: gives the reference and the target.
      budget: the budget.
      arm: one of its arms.
      measure: the figure.

    Returns:
      The mean with its interval; None for the reference itself, or without a common seed.
    """
    if arm.name == comparison.reference:
        return None
    reference = budget.arm(comparison.reference)
    mine, theirs = (by_seed(each, measure, comparison.target) for each in (arm, reference))
    return paired_difference(mine, theirs, measure.bounds)


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of the points on the Pareto front: no other point is at most as large in both figures and smaller in one.

    Args:
      points: by name, two figures of which less is better.

    Returns:
      The names in the order of the first figure.
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
    """The arms on the Pareto front of mean loss and mean cost; an arm that pools all data is not considered for bytes.

    Args:
      budget: the budget.
      measure: the cost.
    """
    rivals = {name: point for name, point in front_points(budget, measure).items() if not budget.arm(name).pools}
    return pareto(rivals)
