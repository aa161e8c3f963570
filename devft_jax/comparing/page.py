"""`comparison.html`: a comparison on one page without external resources.

The page starts with the conclusions; then come, for every budget, its tables, the loss against the costs with the Pareto
front, and the losses during the runs; then how it was compared, and every run.

Lines join measurements only against rounds, and only those at which all arms were evaluated. Against bytes, operations or
seconds the same rounds of two arms are at different places, and a line would suggest values between them that were not
measured: an arm with distant points would look worse in between than it is.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from devft_jax.comparing.measures import BYTES_UP, COSTS, FINAL_LOSS, TRAIN_FLOPS, front_points, fronts, mean_of
from devft_jax.comparing.recorded import recorded_curves, recorded_table
from devft_jax.comparing.results import ArmResult, Budget, Comparison, ListedRun, Point
from devft_jax.comparing.scores import score_notes
from devft_jax.comparing.statistics import estimate
from devft_jax.comparing.tables import (
    NAME_WIDTH,
    Table,
    column_parts,
    cost_table,
    learned_table,
    score_table,
    target_table,
    tuning_table,
)
from devft_jax.comparing.verdict import fairness, notes, verdict
from devft_jax.config.files import to_plain
from devft_jax.reporting import page
from devft_jax.reporting.chart import Frame, Level, Line, Spot, legend, plot_lines, plot_spots
from devft_jax.reporting.names import shortened
from devft_jax.reporting.settings import shown
from devft_jax.reporting.svg import escape
from devft_jax.reporting.units import BYTES, FLOPS, SECONDS, Units, unit_for

PAGE_LETTERS = 130
"""Characters that fit in one table; further columns continue in another table."""

STYLE = """
.results th { text-align: right; white-space: nowrap } .results td { text-align: right; white-space: nowrap }
.results thead th:first-child, .results tbody th { text-align: left; white-space: normal; overflow-wrap: anywhere;
  min-width: 11rem }
"""

Spent = Callable[[Point], float]
"""A cost of a point of a run."""


@dataclass(frozen=True)
class _Axis:
    """The x axis for losses during the runs."""

    spent: Spent
    label: str
    units: Units
    joined: bool = False


SPENT = ((BYTES_UP, "sent up by all clients", BYTES), (TRAIN_FLOPS, "training work", FLOPS))
"""The x axes for final losses: a measure of a run, a label and its units."""

AXES = (
    _Axis(lambda point: point.round, "rounds", (), joined=True),
    _Axis(lambda point: point.bytes_up, "sent up by all clients", BYTES),
    _Axis(lambda point: point.train_flops, "training work", FLOPS),
    _Axis(lambda point: point.seconds, "training time", SECONDS),
    _Axis(lambda point: point.simulated, "simulated time", SECONDS),
)


def comparison_html(comparison: Comparison, judged: str = "") -> str:
    """The page.

    Args:
      comparison: the comparison.
      judged: the section on judged answers; empty for none.
    """
    title = f"Comparison of {len(comparison.budgets[0].arms)} methods"
    body = [_headline(comparison, title, judged)]
    body += [_budget(comparison, budget) for budget in comparison.budgets]
    body += [judged, _terms(comparison), _runs(comparison)]
    return page.page(title, (STYLE,), body)


def _headline(comparison: Comparison, title: str, judged: str) -> str:
    seeds = len(comparison.seeds)
    links = {
        **{budget.kind: f"Equal {budget.kind}" for budget in comparison.budgets},
        **({"judged": "Judged answers"} if judged else {}),
        "terms": "How it was compared",
        "runs": "Every run",
    }
    items = "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in links.items())
    model = "the bundled model" if comparison.common.model == "bundled" else comparison.common.model
    what = f"{model[:1].upper()}{model[1:]} on {shown(comparison.common.data)}, {seeds} seed{'s' if seeds > 1 else ''}."
    words = verdict(comparison)
    return (
        f"<header><h1>{escape(title)}</h1>{page.paragraph(what)}"
        + "".join(page.paragraph(sentence, "lead" if index == 0 else "") for index, sentence in enumerate(words))
        + f'<nav aria-label="Sections"><ul>{items}</ul></nav></header>'
    )


def _table(found: Table | None) -> str:
    if found is None:
        return ""
    inside = ""
    for number, part in enumerate(column_parts([found.header, *found.rows], PAGE_LETTERS)):
        columns = [0, *part]
        header, *rows = [[row[index] for index in columns] for row in (found.header, *found.rows)]
        inside += page.table(found.title if number == 0 else f"{found.title}, continued", header, rows, "results")
    below = page.paragraph(f"{found.below[:1].upper()}{found.below[1:]}.", "soft") if found.below else ""
    return f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(found.title)}">{inside}</div>{below}'


def _budget(comparison: Comparison, budget: Budget) -> str:
    return page.section(
        budget.kind,
        budget.text,
        _table(learned_table(comparison, budget)),
        _table(recorded_table(comparison, budget)),
        _table(score_table(comparison, budget)),
        *_spots(budget),
        _table(cost_table(comparison, budget)),
        _table(target_table(comparison, budget)),
        *_curves(comparison, budget),
        *recorded_curves(budget),
        _table(tuning_table(comparison, budget)),
        *map(page.paragraph, [*notes(budget), *score_notes(comparison, budget)]),
    )


def _spots(budget: Budget) -> list[str]:
    """Loss against bytes and against operations, with the Pareto front; empty without losses."""
    names = [arm.name for arm in budget.arms if mean_of(arm, FINAL_LOSS) is not None]
    if not names:
        return []
    pictures = []
    for measure, label, units in SPENT:
        points = front_points(budget, measure)
        if not points:
            continue
        size, unit = unit_for(max(x for x, _ in points.values()), units)
        spots = []
        for name in names:
            cost, loss = (mean_of(budget.arm(name), each) for each in (measure, FINAL_LOSS))
            if cost is not None and loss is not None:
                reach = None if cost.interval is None else (cost.interval[0] / size, cost.interval[1] / size)
                spots.append(Spot(name, cost.mean / size, loss.mean, reach, loss.interval))
        front = [(points[name][0] / size, points[name][1]) for name in fronts(budget, measure)]
        title = f"Held-out loss against {label}, equal {budget.kind}"
        picture = plot_spots(title, f"{label}, {unit}", "held-out loss", spots, front=front)
        pictures.append(page.figure(picture, "", wide=False))
    caption = (
        "Means over seeds with their intervals. The dashed line is the Pareto front: an arm above and to the right of it is "
        "matched or beaten in both figures by an arm on it; arms that pool all data are not considered."
    )
    looks = legend([Line(name, [(0, 0)]) for name in names])
    return [
        page.heading("Loss against cost"),
        page.paragraph(caption),
        page.legend([(look, shortened(name, NAME_WIDTH)) for look, name in looks]),
        page.side_by_side(*pictures, least=420),
    ]


def mean_curve(arm: ArmResult, spent: Spent, *, joined: bool) -> list[Line]:
    """Means over an arm's finished runs, of loss against a cost, at the rounds at which all of them were evaluated.

    Args:
      arm: the arm.
      spent: the cost of a point, for the x axis.
      joined: whether a line joins the rounds at which all arms were evaluated; all other measurements are single points.

    Returns:
      Lines and single points.
    """
    runs = [{point.round: point for point in outcome.curve} for outcome in arm.finished if outcome.curve]
    rounds = sorted(set.intersection(*map(set, runs))) if runs else []
    alike = [number for number in rounds if joined and all(run[number].alike for run in runs)]
    pieces = [(alike, True), ([number for number in rounds if number not in alike], False)]
    return [
        _piece(arm.name, [[run[number] for run in runs] for number in part], spent, line) for part, line in pieces if part
    ]


def _piece(name: str, measured: Sequence[Sequence[Point]], spent: Spent, joined: bool) -> Line:
    """A line, or single points, through the means of several runs' measurements."""
    points, intervals = [], []
    for each in measured:
        found = estimate([point.loss for point in each], FINAL_LOSS.bounds)
        assert found is not None
        points.append((fmean(spent(point) for point in each), found.mean))
        intervals.append(found.interval)
    return Line(name, points, intervals=intervals, joined=joined)


def _curves(comparison: Comparison, budget: Budget) -> list[str]:
    """Losses during the runs against rounds, and against every cost."""
    names = [arm.name for arm in budget.arms if mean_of(arm, FINAL_LOSS) is not None]
    against_rounds: list[str] = []
    against_costs: list[str] = []
    still: list[str] = []
    for axis in AXES:
        lines = [line for name in names for line in mean_curve(budget.arm(name), axis.spent, joined=axis.joined)]
        # An arm that sends nothing is not a line over bytes but a level at its final loss.
        free = [name for name in names if not any(x for line in lines if line.name == name for x, _ in line.points)]
        levels = [Level(shortened(line.name, NAME_WIDTH), line.points[-1][1]) for line in lines if line.name in free]
        moving = [line for line in lines if line.name not in free]
        if not moving:
            continue
        still += [line.name for line in lines if line.name in free]
        size, unit = unit_for(max(x for line in moving for x, _ in line.points), axis.units) if axis.units else (1.0, "")
        drawn = [dataclasses.replace(line, points=[(x / size, y) for x, y in line.points]) for line in moving]
        if not axis.joined:
            # Among so many single points the intervals would hide them; those against rounds are the same.
            drawn = [dataclasses.replace(line, intervals=()) for line in drawn]
        if comparison.target is not None:
            levels.append(Level("target", comparison.target))
        title = f"Held-out loss of the full model against {axis.label}, equal {budget.kind}"
        x_label = f"{axis.label}, {unit}" if unit else axis.label
        for width, height, kind in ((1000, 380, "broad"), (340, 280, "narrow")) if axis.joined else ((480, 340, ""),):
            frame = Frame(width=width, height=height, named=False, whole=axis.joined, levels=levels)
            picture = plot_lines(title, x_label, "held-out loss", drawn, frame, names=names)
            figure = page.figure(picture, "", wide=kind == "broad", kind=kind)
            (against_rounds if axis.joined else against_costs).append(figure)
    if not against_rounds:
        return []
    words = (
        "Means over seeds of the full model's loss, against rounds with their intervals; an interval without an end bar "
        "continues beyond the picture. "
    )
    every = comparison.common.evaluate_every
    often = f"{every} rounds" if every > 1 else "round"
    words += (
        f"Against rounds, lines join the rounds at which all arms were evaluated, every {often}"
        if every
        else "The arms were not evaluated at the same rounds"
    )
    apart = [name for name in comparison.judged_apart if name in names] if every else []
    words += f" ({', '.join(apart)} not at these)" if apart else ""
    words += (
        "; all other points are separate, and so are all points against costs: there the same rounds are at different "
        "places in each arm, and nothing was measured between two points."
    )
    if comparison.target is not None:
        words += f" A dotted level is the target, {comparison.target:.4f}."
    if still:
        words += f" An arm that sends nothing is a dotted level over bytes: {', '.join(dict.fromkeys(still))}."
    looks = legend([Line(name, [(0, 0)]) for name in names])
    return [
        page.heading("Loss during the runs"),
        page.paragraph(words),
        page.legend([(look, shortened(name, NAME_WIDTH)) for look, name in looks]),
        *against_rounds,
        page.side_by_side(*against_costs, least=420),
    ]


def _terms(comparison: Comparison) -> str:
    options = sorted(to_plain(comparison.common).items())
    rows: Sequence[Sequence[page.Cell]] = [
        [name, shown(value)] for name, value in options if name not in ("algorithm", "growth", "seed", "out")
    ]
    command = [page.heading("The command"), page.code(comparison.command)] if comparison.command else []
    return page.section(
        "terms",
        "How it was compared",
        *map(page.paragraph, fairness(comparison)),
        *command,
        page.folded("Options that all arms share", page.table("Options of every run", ["option", "value"], rows)),
    )


def _runs(comparison: Comparison) -> str:
    measures = (FINAL_LOSS, *COSTS[:5])
    header = ["arm", "seed", "budgets", *(each.title for each in measures), "folder"]

    def cells(listed: ListedRun) -> list[page.Cell]:
        run = listed.run
        figures = [measure.of(run, comparison.target) if run.finished else None for measure in measures]
        shown: list[page.Cell] = [
            None if figure is None else measure.form.shown(figure) for figure, measure in zip(figures, measures, strict=True)
        ]
        if run.error is not None:
            shown[0] = f"failed: {run.error}"
        return [listed.arm.name, str(run.seed), " ".join(listed.budgets), *shown, run.folder]

    rows = [cells(listed) for listed in comparison.runs]
    words = "Every run is a folder for devft report, export, generate and replay; comparison.json has all figures."
    table = page.table("Every run", header, rows)
    return page.section("runs", "Every run", page.paragraph(words), page.folded(f"The {len(rows)} runs", table))
