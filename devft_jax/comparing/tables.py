"""Several methods beside each other: what their runs measured, over seeds, and what can be said of it.

A `Comparison` is plain results; everything here is arithmetic on them. Its tables are made once, as texts in columns
(`sections`), which a terminal, Markdown and the page show alike; `to_plain` and the rows for CSV have the numbers.

A figure is a mean over seeds with the 95 % interval of the mean; a difference is the mean over seeds of an arm's run less
the reference's run with the same seed. A seed that failed or did not reach the target is counted, never filled in.
"""

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from devft_jax.comparing.statistics import POSITIVE, SHARE, Bounds, Estimate, estimate, paired_difference
from devft_jax.files import as_code_block, as_markdown
from devft_jax.reporting.names import shortened
from devft_jax.reporting.table import table
from devft_jax.reporting.units import BYTES, ENERGY, FLOPS, SECONDS, Units, unit_for

WIDTH = 140
"""Columns that tables as text keep to, by going on beneath."""

NAME_WIDTH = 40
"""Characters of an arm's name in tables as text; longer ones lose their middle there."""


@dataclass(frozen=True)
class Point:
    """The full model's held-out loss after `round` rounds, and what had been spent by then.

    `alike` tells whether it is one of the rounds at which all arms were judged.
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
      seed: its seed. folder: where it lies. summary: its `summary.json`; empty where it failed. curve: measurements of the
        full model, from the untuned base on. error: why it failed, in a sentence; None where it did not.
    """

    seed: int
    folder: str
    summary: Mapping[str, Any] = field(default_factory=dict)
    curve: Sequence[Point] = ()
    error: str | None = None

    @property
    def finished(self) -> bool:
        """Whether it has results."""
        return self.error is None


def judged_alike(outcome: Outcome, every: int) -> Outcome:
    """The run with those of its measurements told apart at which all arms were judged: every so many rounds, from 0 on.

    Where one of them is missing, as in a run that was made before for another comparison, none is.
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
      config: plain options of its runs, the seed apart. changes: those that are not the common ones, besides `algorithm`,
        `growth` and what `note` tells of. note: how its rounds or rank came about. outcomes: a run for each seed.
      pools: whether it holds all clients' examples in one place, so that nothing has to travel.
      tuning: held-out loss on the tuning seed by learning rate, None where the run failed; None where nothing was tuned.
    """

    name: str
    config: Mapping[str, Any]
    changes: Mapping[str, Any]
    note: str
    outcomes: Sequence[Outcome]
    pools: bool = False
    tuning: Mapping[float, float | None] | None = None

    @property
    def rounds(self) -> int:
        """Of all stages."""
        return sum(self.config["stage_rounds"] or [self.config["rounds"]])

    @property
    def finished(self) -> list[Outcome]:
        """The runs that have results."""
        return [outcome for outcome in self.outcomes if outcome.finished]

    @property
    def personal(self) -> bool:
        """Whether its loss is the mean over clients' own models."""
        return any(outcome.summary.get("personal_models") for outcome in self.finished)


@dataclass(frozen=True)
class Budget:
    """All methods under one budget: `kind` is rounds or bytes, `text` says what it is, `left_out` what does not fit."""

    kind: str
    text: str
    arms: Sequence[ArmResult]
    left_out: Sequence[str] = ()

    def arm(self, name: str) -> ArmResult:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)


@dataclass(frozen=True)
class Comparison:
    """What was compared.

    Attributes:
      budgets: one or two, with the same arms. reference: the arm that differences are to.
      target: held-out loss that runs are to reach; None where it is not known. target_given: whether somebody asked for it;
        else it is the mean of the reference's final losses under the first budget.
      tuning_seed, rates: of the search for a learning rate; None and empty where there was none.
      common: plain options that all arms share. command: that made it.
    """

    budgets: Sequence[Budget]
    reference: str
    seeds: Sequence[int]
    target: float | None
    target_given: bool
    tuning_seed: int | None
    rates: Sequence[float]
    common: Mapping[str, Any]
    command: str


# ---- measures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """How figures of a kind are written: in units, or by digits and a factor."""

    units: Units | None = None
    digits: int = 3
    factor: float = 1.0
    suffix: str = ""

    def shown(self, mean: float, interval: tuple[float, float] | None = None, *, sign: bool = False) -> str:
        """A mean, with its interval where that is known: as +- where both ends lie equally far as far as digits tell."""
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


@dataclass(frozen=True)
class Measure:
    """A figure of a run: its name in files, its heading in tables, and where it comes from.

    `of(outcome, target)` gives it, or None where the run does not have it.
    """

    name: str
    title: str
    of: Callable[[Outcome, float | None], float | None]
    form: Form
    optional: bool = False
    """Left out of tables where no run has it."""
    bounds: Bounds = POSITIVE
    """Where it can lie."""


def _summary(name: str) -> Callable[[Outcome, float | None], float | None]:
    return lambda outcome, target: outcome.summary.get(name)


def _seconds(*names: str) -> Callable[[Outcome, float | None], float | None]:
    def of(outcome: Outcome, target: float | None) -> float | None:
        spent = outcome.summary.get("seconds")
        return None if spent is None else sum(spent[name] for name in names)

    return of


def reached(outcome: Outcome, target: float | None) -> Point | None:
    """The first measurement at or below the target, of those that all arms have and the run's end; None where none is.

    More measurements than the others have would let a run arrive earlier. Of a run that lacks the common ones, all count.
    """
    if target is None:
        return None
    common = [point for point in outcome.curve if point.alike]
    counted = [*common, *outcome.curve[-1:]] if common else outcome.curve
    return next((point for point in counted if point.loss <= target), None)


def _at_target(name: str) -> Callable[[Outcome, float | None], float | None]:
    def of(outcome: Outcome, target: float | None) -> float | None:
        point = reached(outcome, target)
        return None if point is None else getattr(point, name)

    return of


def _own_loss(outcome: Outcome, target: float | None) -> float | None:
    """The mean loss of the clients' own models, where there is a global one besides."""
    personal = outcome.summary.get("personal")
    return None if personal is None or outcome.summary.get("personal_models") else statistics.fmean(personal["losses"])


def _kwh(outcome: Outcome, target: float | None) -> float | None:
    return (outcome.summary.get("energy") or {}).get("kwh")


FINAL_LOSS = Measure("final_loss", "held-out loss", _summary("final_loss"), LOSS)
OWN_LOSS = Measure("own_loss", "clients' own models", _own_loss, LOSS, optional=True)
BYTES_UP = Measure("bytes_up", "sent up", _summary("bytes_up"), Form(BYTES))
TRAIN_FLOPS = Measure("train_flops", "training work", _summary("train_flops"), Form(FLOPS))

LEARNED = (
    FINAL_LOSS,
    Measure("accuracy", "exact match", _summary("accuracy"), PERCENT, bounds=SHARE),
    OWN_LOSS,
)
COSTS = (
    BYTES_UP,
    Measure("bytes_down", "sent down", _summary("bytes_down"), Form(BYTES)),
    Measure("bytes_stage", "stages down", _summary("bytes_stage"), Form(BYTES)),
    TRAIN_FLOPS,
    Measure("seconds_train", "training", _seconds("train"), Form(SECONDS)),
    Measure("seconds_total", "with compiling", _seconds("train", "compile", "build"), Form(SECONDS)),
    Measure("peak_memory_bytes", "peak memory", _summary("peak_memory_bytes"), Form(BYTES)),
    Measure("kwh", "energy", _kwh, Form(ENERGY), optional=True),
)
TO_TARGET = (
    Measure("rounds_to_target", "rounds", _at_target("round"), COUNT),
    Measure("bytes_to_target", "sent up", _at_target("bytes_up"), Form(BYTES)),
    Measure("flops_to_target", "training work", _at_target("train_flops"), Form(FLOPS)),
    Measure("seconds_to_target", "training", _at_target("seconds"), Form(SECONDS)),
)
MEASURES = (*LEARNED, *COSTS, *TO_TARGET)


def by_seed(arm: ArmResult, measure: Measure, target: float | None) -> dict[int, float]:
    """A measure of an arm's runs, for the seeds that have it."""
    found = {outcome.seed: measure.of(outcome, target) for outcome in arm.finished}
    return {seed: float(value) for seed, value in found.items() if value is not None}


def mean_of(arm: ArmResult, measure: Measure, target: float | None = None) -> Estimate | None:
    """Its mean over the arm's seeds with the interval."""
    return estimate(list(by_seed(arm, measure, target).values()), measure.bounds)


def difference(comparison: Comparison, budget: Budget, arm: ArmResult, measure: Measure) -> Estimate | None:
    """The mean over the common seeds of the arm's less the reference's, under the same budget; None for the reference."""
    if arm.name == comparison.reference:
        return None
    reference = budget.arm(comparison.reference)
    mine, theirs = (by_seed(each, measure, comparison.target) for each in (arm, reference))
    return paired_difference(mine, theirs, measure.bounds)


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of the points that no other is at most as large as in both and smaller in one, by their first figure."""

    def dominated(name: str) -> bool:
        mine = points[name]
        return any(theirs != mine and theirs[0] <= mine[0] and theirs[1] <= mine[1] for theirs in points.values())

    return sorted((name for name in points if not dominated(name)), key=lambda name: points[name])


# ---- tables ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A table of texts; the first column names the rows."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    below: str = ""
    """What its marks mean."""


@dataclass(frozen=True)
class Section:
    """A part of what is told: a heading over tables and paragraphs."""

    title: str
    tables: Sequence[Table] = ()
    paragraphs: Sequence[str] = ()


def _used(measures: Sequence[Measure], budget: Budget, target: float | None) -> list[Measure]:
    return [
        measure for measure in measures if not measure.optional or any(by_seed(arm, measure, target) for arm in budget.arms)
    ]


def _cell(found: Estimate | None, form: Form, *, sign: bool = False) -> str:
    return "" if found is None else form.shown(found.mean, found.interval, sign=sign)


def _counted(arm: ArmResult) -> str:
    done, all_ = len(arm.finished), len(arm.outcomes)
    return str(all_) if done == all_ else f"{done} of {all_}" if done else "failed"


def _rate(arm: ArmResult) -> str:
    return ",".join(f"{rate:g}" for rate in arm.config["learning_rate"])


def learned_table(comparison: Comparison, budget: Budget) -> Table:
    """Loss and exact match, with differences to the reference."""
    measures = _used(LEARNED, budget, comparison.target)
    header = ["", "rounds", "rank", "rate", "seeds"]
    for measure in measures:
        # By its name, since the two may stand in different parts of a wide table.
        difference_in = f"difference in {measure.title.removeprefix('held-out ')}"
        header += [measure.title, *(() if measure.optional else (difference_in,))]
    rows = [_base_row(budget, measures)] if any(arm.finished for arm in budget.arms) else []
    for arm in budget.arms:
        row = [arm.name, str(arm.rounds), str(arm.config["rank"]), _rate(arm), _counted(arm)]
        for measure in measures:
            row.append(_cell(mean_of(arm, measure), measure.form))
            if measure.optional:
                continue
            found = difference(comparison, budget, arm, measure)
            told = _cell(found, measure.form, sign=True) + ("*" if found is not None and found.sign else "")
            row.append("reference" if arm.name == comparison.reference else told)
        rows.append(row)
    below = (
        f"differences are to {comparison.reference}, paired by seed; * the 95 % interval of the difference excludes zero"
        if len(comparison.seeds) > 1
        else f"differences are to {comparison.reference}; one seed has no interval"
    )
    return Table("What was learned", header, rows, below)


def _base_row(budget: Budget, measures: Sequence[Measure]) -> list[str]:
    """The untuned base, whose loss follows a seed only where the held-out data does."""
    names = {"final_loss": "base_loss", "accuracy": "base_accuracy"}
    finished = {outcome.seed: outcome.summary for arm in budget.arms for outcome in arm.finished}
    row = ["untuned base", "", "", "", ""]
    for measure in measures:
        known = [summary.get(names.get(measure.name, "")) for summary in finished.values()]
        row += [_cell(estimate([value for value in known if value is not None], measure.bounds), measure.form)]
        row += [] if measure.optional else [""]
    return row


def cost_table(comparison: Comparison, budget: Budget) -> Table:
    """What the runs cost."""
    measures = _used(COSTS, budget, comparison.target)
    rows = [[arm.name, *(_cell(mean_of(arm, measure), measure.form) for measure in measures)] for arm in budget.arms]
    return Table(
        "What it cost",
        ["", *(measure.title for measure in measures)],
        rows,
        "bytes of all clients' messages; stages down: numbers of picked layers, or fused ones unless clients fuse them",
    )


def target_table(comparison: Comparison, budget: Budget) -> Table | None:
    """What it took to reach the target; None where there is no target."""
    target = comparison.target
    if target is None:
        return None
    rows = []
    for arm in budget.arms:
        hits = [reached(outcome, target) is not None for outcome in arm.finished]
        counted = f"{sum(hits)} of {len(arm.outcomes)}"
        rows.append([arm.name, counted, *(_cell(mean_of(arm, each, target), each.form) for each in TO_TARGET)])
    source = "as asked for" if comparison.target_given else f"the mean final loss of {comparison.reference}"
    return Table(
        f"To a held-out loss of {target:.4f}, {source}",
        ["", "seeds that reach it", *(measure.title for measure in TO_TARGET)],
        rows,
        "means over the seeds that reach it, up to the first measurement there",
    )


def tuning_table(comparison: Comparison, budget: Budget) -> Table | None:
    """Held-out losses of the search for a learning rate; None where there was none."""
    if not comparison.rates:
        return None
    rows = []
    for arm in budget.arms:
        losses = arm.tuning or {}
        shown = ["failed" if losses.get(rate) is None else f"{losses[rate]:.4f}" for rate in comparison.rates]
        chosen = _rate(arm) if any(loss is not None for loss in losses.values()) else "none"
        rows.append([arm.name, *shown, chosen])
    heads = [f"{rate:g}" for rate in comparison.rates]
    return Table(f"Learning rates, held-out loss on seed {comparison.tuning_seed}", ["", *heads, "chosen"], rows)


def sections(comparison: Comparison) -> list[Section]:
    """Everything that is told, in order."""
    told = []
    for budget in comparison.budgets:
        found = [
            learned_table(comparison, budget),
            cost_table(comparison, budget),
            target_table(comparison, budget),
            tuning_table(comparison, budget),
        ]
        told.append(Section(budget.text, [each for each in found if each is not None], notes(budget)))
    told.append(Section("What can be said", paragraphs=verdict(comparison)))
    told.append(Section("How it was compared", paragraphs=fairness(comparison)))
    return told


def notes(budget: Budget) -> list[str]:
    """How arms came by their rounds or rank, and which runs failed and why, in sentences."""
    own = [f"{arm.name}: {arm.note}." for arm in budget.arms if arm.note]
    failed = [
        f"{arm.name}, seed {outcome.seed}, failed: {outcome.error}"
        for arm in budget.arms
        for outcome in arm.outcomes
        if not outcome.finished
    ]
    return [*own, *budget.left_out, *failed]


# ---- sentences -------------------------------------------------------------------------------------------------------


def verdict(comparison: Comparison) -> list[str]:
    """What the numbers say, in sentences, budget by budget, and how much chance is in them."""
    sentences = [sentence for budget in comparison.budgets for sentence in _verdict(comparison, budget)]
    if len(comparison.seeds) == 1:
        return [*sentences, "This is one seed; how far other seeds lie apart it does not tell."]
    others = sum(len(budget.arms) - 1 for budget in comparison.budgets)
    caution = (
        f"Intervals are Student's over {len(comparison.seeds)} seeds, of what has bounds (losses, costs, shares and their "
        "differences) on a scale without them, at 95 % for each difference by itself, and seeds that all give the same make "
        "none"
    ) + (f": of {others} differences some may exclude zero by chance." if others > 1 else ".")
    return [*sentences, caution]


def _verdict(comparison: Comparison, budget: Budget) -> list[str]:
    reference = budget.arm(comparison.reference)
    standard = mean_of(reference, FINAL_LOSS)
    where = f"At equal {budget.kind}"
    if standard is None:
        why = "its runs failed" if not reference.finished else "there is no held-out data"
        return [f"{where} nothing can be said beside {reference.name}: {why}."]
    groups: dict[str, list[str]] = {"lower": [], "higher": [], "the same": [], "open": []}
    for arm in budget.arms:
        found = difference(comparison, budget, arm, FINAL_LOSS)
        if found is None:
            continue
        shown = f"{arm.name} ({LOSS.shown(found.mean, found.interval, sign=True)})"
        if found.mean == 0 and found.interval is None:
            groups["the same"].append(arm.name)
        elif found.count == 1:
            groups["lower" if found.mean < 0 else "higher"].append(shown)
        else:
            groups[{-1: "lower", 1: "higher", 0: "open"}[found.sign]].append(shown)
    parts = [f"{name} with {_listed(arms)}" for name, arms in groups.items() if arms and name != "open"]
    said = []
    if parts:
        said.append(f"{where}, against {reference.name} at {_cell(standard, LOSS)}, held-out loss is {'; '.join(parts)}.")
    if groups["open"]:
        said.append(
            f"{where} no difference in held-out loss can be told between {reference.name} and {_listed(groups['open'])}: "
            "the intervals include zero, or the seeds make none."
        )
    return [*said, *_best(comparison, budget), *_fronts(budget)]


def _best(comparison: Comparison, budget: Budget) -> Iterator[str]:
    """Who ends lowest, and at what cost beside the reference."""
    means = {arm.name: mean_of(arm, FINAL_LOSS) for arm in budget.arms}
    known = {name: found for name, found in means.items() if found is not None and not budget.arm(name).pools}
    if len(known) < 2:
        return
    name = min(known, key=lambda each: known[each].mean)
    shares = []
    for measure, what in ((BYTES_UP, "bytes up"), (TRAIN_FLOPS, "FLOPs")):
        mine, theirs = (mean_of(budget.arm(each), measure) for each in (name, comparison.reference))
        if mine is not None and theirs is not None and theirs.mean and name != comparison.reference:
            shares.append(f"{mine.mean / theirs.mean:.0%} of {comparison.reference}'s {what}")
    cost = f", with {' and '.join(shares)}" if shares else ""
    among = "" if len(known) == len(budget.arms) else " of those that keep data apart"
    yield f"The lowest mean at equal {budget.kind}{among} is that of {name}, {_cell(known[name], FINAL_LOSS.form)}{cost}."


def front_points(budget: Budget, measure: Measure) -> dict[str, tuple[float, float]]:
    """Mean cost and mean held-out loss of every arm that has both."""
    points = {}
    for arm in budget.arms:
        cost, loss = mean_of(arm, measure), mean_of(arm, FINAL_LOSS)
        if cost is not None and loss is not None:
            points[arm.name] = (cost.mean, loss.mean)
    return points


def fronts(budget: Budget, measure: Measure) -> list[str]:
    """The arms on the Pareto front of mean loss and mean cost; what holds all data in one place is no rival in bytes."""
    rivals = {name: point for name, point in front_points(budget, measure).items() if not budget.arm(name).pools}
    return pareto(rivals)


def _fronts(budget: Budget) -> Iterator[str]:
    for measure, what in ((BYTES_UP, "bytes sent up"), (TRAIN_FLOPS, "training work")):
        front = fronts(budget, measure)
        if len(budget.arms) > 2 and front:
            yield f"On the Pareto front of mean loss and {what} at equal {budget.kind}: {_listed(front)}."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


WORK = ("clients_per_round", "local_steps", "batch_size")
"""Options that change how many examples a round has."""


def fairness(comparison: Comparison) -> list[str]:
    """What is equal between the arms and what is not, in sentences."""
    first, common = comparison.budgets[0], comparison.common
    seeds = ", ".join(map(str, comparison.seeds))
    said = [
        f"Seed{'s' if len(comparison.seeds) > 1 else ''} {seeds}: of the split, the cohorts, the order of examples and the "
        "initialisation. All arms of a seed have the same clients, cohorts and examples; their splits were compared.",
        _rates_told(comparison),
    ]
    for arm in first.arms:
        if arm.changes:
            shown = ", ".join(f"{name} {_plain(value)}" for name, value in arm.changes.items())
            said.append(f"{arm.name} has options of its own: {shown}.")
        changed = [name for name in WORK if name in arm.changes]
        if changed:
            said.append(f"Its {' and '.join(changed)} give {arm.name} other numbers of examples in a round.")
    shorter = sorted({arm.name for budget in comparison.budgets for arm in budget.arms if arm.rounds != common["rounds"]})
    if shorter:
        said.append(f"Runs of other lengths have schedules of their own over their rounds: {_listed(shorter)}.")
    personal = [arm.name for arm in first.arms if arm.personal]
    if personal:
        said.append(
            f"Every client has a model of its own in {_listed(personal)}; figures are means over the clients' models."
        )
    both = [arm.name for arm in first.arms if by_seed(arm, OWN_LOSS, None)]
    if both:
        said.append(f"In {_listed(both)} figures are of the one model that stands for all clients; their own are beside it.")
    said += _judged_told(comparison)
    said.append(
        "Runs were made one at a time, each in a process of its own; training time leaves compiling, evaluation and stage "
        "changes out, and 'with compiling' adds compiling and stage changes. What was compiled before is read from a "
        "cache, so that first runs compile longer and need more memory than later ones. On a CPU, rounds beside which the "
        "next stage is compiled (--compile-ahead on) take longer."
    )
    sources = {outcome.summary.get("peak_memory_source") for _, outcome in _runs(comparison)}
    said.append(f"Peak memory: {_listed(sorted(str(source) for source in sources))}." if sources else "")
    versions = {str(sorted((outcome.summary.get("versions") or {}).items())) for _, outcome in _runs(comparison)}
    if len(versions) > 1:
        said.append("The runs were not all made with the same versions or on the same device: see runs.csv.")
    return [sentence for sentence in said if sentence]


def _judged_told(comparison: Comparison) -> Iterator[str]:
    """When the full model was judged, and which arms were not judged as the others were."""
    every = comparison.common["evaluate_every"]
    if not every:
        yield (
            "The full model was judged at the ends of stages alone (evaluate_every 0), so at other rounds in each arm; what "
            "it took to reach a loss is known to within a stage."
        )
        return
    apart = unlike(comparison)
    but = f" in all arms but {_listed(apart)}, judged at the ends of stages alone" if apart else " in all arms"
    yield (
        f"The full model was judged every {f'{every} rounds' if every > 1 else 'round'}{but}; what it took to reach a loss "
        "is known to within that, and counted at these rounds and at a run's end."
    )


def unlike(comparison: Comparison) -> list[str]:
    """The arms with a run that was judged, but not at the rounds at which all are."""
    return list(
        dict.fromkeys(
            arm.name for arm, outcome in _runs(comparison) if outcome.curve and not any(each.alike for each in outcome.curve)
        )
    )


def _runs(comparison: Comparison) -> Iterator[tuple[ArmResult, Outcome]]:
    for budget in comparison.budgets:
        for arm in budget.arms:
            for outcome in arm.finished:
                yield arm, outcome


def _rates_told(comparison: Comparison) -> str:
    if comparison.rates:
        grid = ", ".join(f"{rate:g}" for rate in comparison.rates)
        ends = {min(comparison.rates), max(comparison.rates)}
        edge = sorted(
            {arm.name for budget in comparison.budgets for arm in budget.arms if ends & {*arm.config["learning_rate"]}}
        )
        told = (
            f"Every arm's learning rate is the best of {grid} by held-out loss in one run on seed {comparison.tuning_seed}, "
            "which is none of those above; the held-out examples are those that are reported on."
        )
        return told + (
            f" At an end of these rates lies that of {_listed(edge)}: a better one may lie beyond." if edge else ""
        )
    rates = {arm.name: _rate(arm) for arm in comparison.budgets[0].arms}
    if len(set(rates.values())) == 1:
        return f"All arms have the learning rate {next(iter(rates.values()))}; it was not tuned for each of them here."
    return f"Learning rates were given, not tuned here: {', '.join(f'{name} {rate}' for name, rate in rates.items())}."


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


# ---- as text ---------------------------------------------------------------------------------------------------------


def column_parts(rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """The columns after the first, in parts of which each has room beside the first."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    parts: list[list[int]] = [[]]
    for index, needed in enumerate(widths[1:], 1):
        taken = min(widths[0], NAME_WIDTH) + sum(widths[each] + 2 for each in parts[-1])
        if parts[-1] and taken + 2 + needed > width:
            parts.append([])
        parts[-1].append(index)
    return parts


def table_lines(shown: Table, width: int = WIDTH) -> list[str]:
    """A table as aligned lines; columns that do not fit go on beneath, each part with the rows' names."""
    rows = [[shortened(row[0], NAME_WIDTH), *row[1:]] for row in (shown.header, *shown.rows)]
    parts = column_parts(rows, width)
    lines = [shown.title]
    for number, part in enumerate(parts):
        lines += [""] if number else []
        lines += table([[row[0], *(row[index] for index in part)] for row in rows])
    return lines + ([f"({shown.below})"] if shown.below else [])


def to_text(comparison: Comparison) -> str:
    """The comparison for a terminal, tables within `WIDTH` columns."""
    import textwrap

    blocks = []
    for section in sections(comparison):
        lines = [section.title, "=" * min(len(section.title), WIDTH)]
        for shown in section.tables:
            lines += ["", *table_lines(shown)]
        lines += [""] if section.tables and section.paragraphs else []
        for paragraph in section.paragraphs:
            lines += textwrap.wrap(paragraph, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        blocks.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join(blocks) + "\n"


def to_markdown(comparison: Comparison) -> str:
    """The comparison as a page of Markdown."""
    parts = [f"# Comparison of {len(comparison.budgets[0].arms)} methods", ""]
    if comparison.command:
        parts += [as_code_block(comparison.command), ""]
    for section in sections(comparison):
        parts += [f"## {as_markdown(section.title)}", ""]
        for shown in section.tables:
            parts += [f"**{as_markdown(shown.title)}**", ""]
            parts += ["| " + " | ".join(map(as_markdown, shown.header)) + " |"]
            parts += ["|---" + "|---:" * (len(shown.header) - 1) + "|"]
            parts += ["| " + " | ".join(map(as_markdown, row)) + " |" for row in shown.rows]
            parts += ["", *([as_markdown(shown.below), ""] if shown.below else [])]
        parts += [f"- {as_markdown(paragraph)}" for paragraph in section.paragraphs]
        parts += [""]
    return "\n".join(parts).rstrip() + "\n"


# ---- as numbers ------------------------------------------------------------------------------------------------------


def _interval(found: Estimate | None) -> dict[str, float | int | None]:
    if found is None:
        return {"mean": None, "low": None, "high": None, "seeds": 0}
    return {"mean": found.mean, "low": found.low, "high": found.high, "seeds": found.count}


def to_plain(comparison: Comparison) -> dict[str, Any]:
    """Everything as JSON-ready values: means, intervals, differences, and every seed's own figures."""
    budgets = []
    for budget in comparison.budgets:
        arms = []
        for arm in budget.arms:
            measures = {
                measure.name: {
                    **_interval(mean_of(arm, measure, comparison.target)),
                    "difference": _interval(difference(comparison, budget, arm, measure)),
                    "by_seed": {str(seed): value for seed, value in by_seed(arm, measure, comparison.target).items()},
                }
                for measure in MEASURES
            }
            tuning = None if arm.tuning is None else {f"{rate:g}": loss for rate, loss in arm.tuning.items()}
            arms.append(
                {
                    "name": arm.name,
                    "algorithm": arm.config["algorithm"],
                    "growth": arm.config["growth"],
                    "rounds": arm.rounds,
                    "rank": arm.config["rank"],
                    "learning_rate": list(arm.config["learning_rate"]),
                    "changes": dict(arm.changes),
                    "note": arm.note,
                    "judged": "mean over clients' own models" if arm.personal else "global model",
                    "tuning": tuning,
                    "runs": [
                        {"seed": outcome.seed, "folder": outcome.folder, "error": outcome.error} for outcome in arm.outcomes
                    ],
                    "measures": measures,
                }
            )
        budgets.append({"kind": budget.kind, "text": budget.text, "left_out": list(budget.left_out), "arms": arms})
    plain = {each.name: getattr(comparison, each.name) for each in dataclasses.fields(comparison) if each.name != "budgets"}
    return {**plain, "budgets": budgets, "verdict": verdict(comparison), "notes": fairness(comparison)}


def arm_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row for each budget and arm, as comparison.csv holds them."""
    rows = []
    for budget in to_plain(comparison)["budgets"]:
        for arm in budget["arms"]:
            row = {"budget": budget["kind"], "arm": arm["name"]}
            row |= {name: arm[name] for name in ("algorithm", "growth", "rounds", "rank", "judged", "note")}
            row |= {"learning_rate": _plain(arm["learning_rate"]), "seeds": len(arm["runs"])}
            for name, found in arm["measures"].items():
                row |= {f"{name}_{part}": found[part] for part in ("mean", "low", "high", "seeds")}
                row |= {f"{name}_difference_{part}": found["difference"][part] for part in ("mean", "low", "high", "seeds")}
            rows.append(row)
    return rows


def run_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row for each run, as runs.csv holds them; one that serves several budgets names them all."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for budget in comparison.budgets:
        for arm in budget.arms:
            for outcome in arm.outcomes:
                known = rows.get((arm.name, outcome.folder))
                if known is not None:
                    known["budgets"] += f" {budget.kind}"
                    continue
                row = {"budgets": budget.kind, "arm": arm.name, "seed": outcome.seed, "folder": outcome.folder}
                row |= {
                    "rounds": arm.rounds,
                    "rank": arm.config["rank"],
                    "learning_rate": _rate(arm),
                    "error": outcome.error,
                }
                row |= {measure.name: measure.of(outcome, comparison.target) for measure in MEASURES}
                versions = outcome.summary.get("versions") or {}
                row |= {"versions": " ".join(f"{name} {value}" for name, value in versions.items())}
                rows[(arm.name, outcome.folder)] = row
    return list(rows.values())
