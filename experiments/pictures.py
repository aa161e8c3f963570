"""The picture of an experiment: every arm's mean with its interval and its runs, or loss against a cost."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from devft_jax.comparing.measures import Form
from devft_jax.reporting.chart import Frame, Level, Line, line_chart, plot_lines
from devft_jax.reporting.svg import COLOURS, TITLE_HEIGHT, Picture, beside, escape
from devft_jax.reporting.ticks import ticks
from devft_jax.reporting.units import BYTES, FLOPS, SECONDS, unit_for
from experiments.claims import LOSS_MEASURE, TITLES, Arms, by_seed, difference_of, mean_of, with_stages
from experiments.study import Experiment

NAMES, ROOM, ROW, FIGURES = 216, 400, 28, 160
"""Pixels for names, for the axis, for a row, and for figures as text."""
COSTS = {
    "seconds_train": (1, "training time", SECONDS),
    "bytes_up": (2, "sent up by all clients", BYTES),
    "simulated_seconds": (3, "simulated time", SECONDS),
}
"""Place in a point of a curve, label and units of the costs against which losses are drawn."""
SPENT = (("train_flops", "training work of all clients", FLOPS), ("bytes_up", "sent up by all clients", BYTES))
"""Costs against which final losses are drawn, with their labels and units."""
FRONT = "front"
"""What is shown of an experiment whose picture has final losses against work and against bytes."""


def picture(experiment: Experiment, results: Mapping[str, Any]) -> str | None:
    """An experiment's picture as SVG; None without figures to show.

    Args:
      experiment: the experiment.
      results: its results at a scale, of which the first model is shown.
    """
    model = results["models"][0]
    arms, name = model["arms"], experiment.shown
    title = f"{experiment.title}, {model['model']}"
    if name == FRONT:
        return _front(title, arms, experiment.reference)
    if name == "gain":
        return _against_alignment(title, arms)
    if name in COSTS and any(run["curve"] for arm in arms.values() for run in arm["runs"]):
        return _against_cost(title, arms, name)
    if experiment.by_stage:
        arms = {key: arm for key, arm in with_stages(arms).items() if key not in model["arms"]}
        planned = not any(by_seed(arms, key, name) for key in arms)
        name = "flops_of_a_step" if planned else name
    base = next((run["base_loss"] for arm in arms.values() for run in arm["runs"] if run.get("base_loss")), None)
    level = base if name == experiment.shown == "final_loss" else None
    return intervals(title, arms, name, None if level is None else ("untuned", level))


def intervals(title: str, arms: Arms, measure: str, level: tuple[str, float] | None = None) -> str | None:
    """A row for every arm: its runs as small dots, their mean as a large one, and its interval; None without figures.

    Args:
      title: the title.
      arms: the arms of a result.
      measure: name of the figure.
      level: name and value of a line to compare with, drawn if it is near.
    """
    label, form = TITLES[measure]
    names = [name for name in arms if by_seed(arms, name, measure)]
    values = [value for name in names for value in by_seed(arms, name, measure).values()]
    if not values:
        return None
    low, high = min(values), max(values)
    margin = 0.25 * (high - low or abs(high))
    if level is not None and low - 4 * margin <= level[1] <= high + 4 * margin:
        low, high = min(low, level[1]), max(high, level[1])
    size, unit = unit_for(high, form.units) if form.units else (1.0, "nats per token")
    marks = ticks(low / size, high / size)
    span = (marks[0], marks[-1])
    floor = TITLE_HEIGHT + 10 + ROW * len(names)

    def across(value: float) -> float:
        share = (value / size - span[0]) / (span[1] - span[0])
        return NAMES + ROOM * min(max(share, 0.0), 1.0)

    parts = [
        f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TITLE_HEIGHT + 8}" y2="{floor}"/>'
        f'<text class="tick" x="{x:.1f}" y="{floor + 18}" text-anchor="middle">{tick:g}</text>'
        for tick, x in ((tick, across(tick * size)) for tick in marks)
    ]
    if level is not None and span[0] <= level[1] / size <= span[1]:
        x = across(level[1])
        parts.append(f'<path class="aside" stroke-dasharray="2 4" d="M{x:.1f} {TITLE_HEIGHT + 8}V{floor}"/>')
        parts.append(f'<text class="note soft" x="{x - 4:.1f}" y="{floor - 4}" text-anchor="end">{escape(level[0])}</text>')
    for index, name in enumerate(names):
        parts += _row(TITLE_HEIGHT + 10 + ROW * index, name, arms, measure, form, across)
    parts.append(
        f'<text x="{NAMES + ROOM / 2}" y="{floor + 38}" text-anchor="middle">{escape(label)}, {escape(unit)}; '
        "means with 95 % intervals, and every seed</text>"
    )
    return Picture(title, NAMES + ROOM + FIGURES, floor + 50, parts).document()


def _row(top: float, name: str, arms: Arms, measure: str, form: Form, across: Any) -> list[str]:
    """An arm's name, runs, mean, interval and figure."""
    found = mean_of(arms, name, measure)
    assert found is not None
    y = top + ROW / 2
    parts = [f'<text x="{NAMES - 12}" y="{y + 4}" text-anchor="end">{escape(name)}</text>']
    if found.interval is not None:
        start, end = map(across, found.interval)
        parts.append(f'<line stroke="{COLOURS[0]}" stroke-width="2" x1="{start:.1f}" x2="{end:.1f}" y1="{y}" y2="{y}"/>')
    for value in by_seed(arms, name, measure).values():
        parts.append(f'<circle cx="{across(value):.1f}" cy="{y}" r="2.5" fill="{COLOURS[1]}"/>')
    parts.append(f'<circle cx="{across(found.mean):.1f}" cy="{y}" r="4.5" fill="{COLOURS[0]}"/>')
    parts.append(f'<text class="note" x="{NAMES + ROOM + 14}" y="{y + 4}">{escape(form.shown(found.mean))}</text>')
    return parts


def _against_cost(title: str, arms: Arms, cost: str) -> str:
    """Held-out loss of the full model against a cost: means over seeds at the rounds at which the arms were evaluated."""
    place, label, units = COSTS[cost]
    curves = {name: _mean_curve([run["curve"] for run in arm["runs"] if run["curve"]], place) for name, arm in arms.items()}
    size, unit = unit_for(max(x for points in curves.values() for x, _ in points), units)
    # The untuned model, at no cost, is the same for all.
    lines = [Line(name, [(x / size, y) for x, y in points[1:]]) for name, points in curves.items()]
    untuned = next(points[0][1] for points in curves.values())
    lowest = min(points[-1][1] for points in curves.values())
    levels = [Level("untuned", untuned)] if untuned < lowest * 2 else []
    return line_chart(title, f"{label}, {unit}", "held-out loss, nats per token", lines, levels=levels)


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]], place: int) -> list[tuple[float, float]]:
    """Mean cost and mean loss at the rounds that all curves have."""
    runs = [{point[0]: point for point in curve} for curve in curves]
    rounds = sorted(set.intersection(*map(set, runs))) if runs else []
    return [
        (statistics.fmean(run[at][place] for run in runs), statistics.fmean(run[at][-1] for run in runs)) for at in rounds
    ]


def _front(title: str, arms: Arms, reference: str) -> str:
    """Final loss against training work and against bytes: every arm's difference to the reference, paired by seed."""
    apart = {name: difference_of(arms, name, reference, LOSS_MEASURE) for name in arms if name != reference}
    pictures = []
    for cost, label, units in SPENT:
        spent = {name: mean_of(arms, name, cost) for name in arms}
        size, unit = unit_for(max(each.mean for each in spent.values() if each is not None), units)
        places = {name: each.mean / size for name, each in spent.items() if each is not None}
        lines = [Line(reference, [(places[reference], 0.0)], joined=False)] if reference in places else []
        lines += [
            Line(name.rpartition(": ")[2], [(places[name], found.mean)], intervals=[found.interval], joined=False)
            for name, found in apart.items()
            if found is not None and name in places
        ]
        frame = Frame(width=620, height=420, first=0.0)
        axis = f"held-out loss less {reference}'s, nats per token"
        pictures.append(plot_lines(label.capitalize(), f"{label}, {unit}", axis, lines, frame))
    return beside(title, pictures).document()


def _against_alignment(title: str, arms: Arms) -> str:
    """The gain of every submodel against its alignment before training, means over seeds, a series for every depth."""
    series: dict[str, list[tuple[float, float]]] = {}
    for name in arms:
        before, gain = mean_of(arms, name, "alignment"), mean_of(arms, name, "gain")
        if before is not None and gain is not None:
            series.setdefault(name.rpartition(", ")[2], []).append((before.mean, gain.mean))
    lines = [Line(name, points, joined=False) for name, points in series.items()]
    return line_chart(title, "alignment with the full model before training", "gain, nats per token", lines)
