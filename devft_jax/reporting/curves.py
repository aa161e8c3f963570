"""What was learned: loss and exact match against rounds, time, bytes and operations, and at each stage change."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence

from devft_jax.reporting import page
from devft_jax.reporting.chart import Band, Frame, Line, Mark, legend, plot_lines
from devft_jax.reporting.page import Cell
from devft_jax.reporting.story import Axis, Evaluated, Story
from devft_jax.reporting.ticks import spread_out

FULL, SUBMODEL, TRAINING = "full model, held-out", "stage's submodel, held-out", "training, mean over clients"
# A series has the same look in every chart, whatever else is drawn there.
NAMES = (FULL, SUBMODEL, TRAINING)
# Above this many points in the width of a large chart, points have no markers.
MARKED = 60
# Most rows in the table of rounds; for longer runs it shows every second, third ... round.
TABLE_ROWS = 400


def stage_bands(story: Story, axis: Axis) -> list[Band]:
    """The stages along an axis, every second one shaded.

    Args:
      story: the run.
      axis: the x axis.
    """
    return [
        Band(
            axis.values[stage.first],
            axis.values[stage.last],
            (f"stage {stage.number}: {stage.layers} layers", f"{stage.layers} layers", str(stage.layers)),
            shaded=stage.number % 2 == 1,
        )
        for stage in story.stages
        if stage.rows
    ]


def resume_marks(story: Story, axis: Axis) -> list[Mark]:
    """Marks where the run was resumed.

    Args:
      story: the run.
      axis: the x axis.
    """
    return [Mark(axis.values[after], f"resumed after round {after}") for after in story.resumes]


def _pieces(
    name: str,
    story: Story,
    pieces: Sequence[Sequence[Evaluated]],
    axis: Axis,
    value: Callable[[Evaluated], float | None],
) -> list[Line]:
    """Measurements: joined by lines where they are as close as those within stages, otherwise as single points."""
    lines = []
    for piece in pieces:
        known = [(point.round, y) for point in piece if (y := value(point)) is not None and math.isfinite(y)]
        for part in close_together(known, story.config.evaluate_every):
            lines.append(Line(name, [(axis.values[number], y) for number, y in part], joined=len(part) > 1))
    return lines


def close_together(points: Sequence[tuple[int, float]], gap: int) -> list[list[tuple[int, float]]]:
    """Points split where more than `gap` rounds without a measurement lie between two.

    Args:
      points: (round, value), in order.
      gap: most rounds between two points of a part.
    """
    parts: list[list[tuple[int, float]]] = []
    for point in points:
        if parts and point[0] - parts[-1][-1][0] <= gap:
            parts[-1].append(point)
        else:
            parts.append([point])
    return parts


def training_losses(story: Story, axis: Axis) -> list[Line]:
    """The mean loss of each round's steps, one line per stage, because each stage trains another submodel.

    Args:
      story: the run.
      axis: the x axis.
    """
    drawn = [[(axis.values[row.round], row.loss) for row in stage.rows if math.isfinite(row.loss)] for stage in story.stages]
    # A single point is not a line and would be invisible without a marker.
    return [Line(TRAINING, points, markers=len(points) == 1) for points in drawn if points]


def _sparsely_marked(lines: Sequence[Line], most: int) -> list[Line]:
    """The lines, without markers if there would be more than `most`."""
    counts = Counter({line.name: 0 for line in lines})
    for line in lines:
        counts[line.name] += len(line.points)
    return [dataclasses.replace(line, markers=line.markers and counts[line.name] <= most) for line in lines]


def full_loss_lines(story: Story, axis: Axis) -> list[Line]:
    """Held-out losses of the full model.

    Args:
      story: the run.
      axis: the x axis.
    """
    return _pieces(FULL, story, story.full_model, axis, lambda point: point.loss)


def stage_loss_lines(story: Story, axis: Axis) -> list[Line]:
    """Losses of the model that each stage trains.

    Args:
      story: the run.
      axis: the x axis.
    """
    return [*_pieces(SUBMODEL, story, story.submodels, axis, lambda point: point.loss), *training_losses(story, axis)]


def loss_lines(story: Story, axis: Axis) -> list[Line]:
    """All losses.

    Args:
      story: the run.
      axis: the x axis.
    """
    return [*full_loss_lines(story, axis), *stage_loss_lines(story, axis)]


def accuracy_lines(story: Story, axis: Axis) -> list[Line]:
    """Exact match in per cent.

    Args:
      story: the run.
      axis: the x axis.
    """

    def percent(point: Evaluated) -> float | None:
        return None if point.accuracy is None else 100 * point.accuracy

    return [
        *_pieces(FULL, story, story.full_model, axis, percent),
        *_pieces(SUBMODEL, story, story.submodels, axis, percent),
    ]


def _losses(story: Story) -> str:
    """The losses in one chart, or in two if those of the submodels would flatten those of the full model."""
    full, trained = (
        [y for line in lines(story, story.axes[0]) for _, y in line.points] for lines in (full_loss_lines, stage_loss_lines)
    )
    if not (story.is_grown and full and trained) or max(trained) <= max(full) + 2 * (max(full) - min(full)):
        return _charts(story, "Loss", "loss", loss_lines, None)
    return _charts(story, "Loss of the full model", "loss", full_loss_lines, None) + _charts(
        story, "Loss of what each stage trains", "loss", stage_loss_lines, None
    )


def _accuracies(story: Story) -> str:
    """Exact match; a sentence if it never changed."""
    values = {y for line in accuracy_lines(story, story.axes[0]) for _, y in line.points}
    if len(values) == 1:
        words = f"Exact match was {values.pop():.1f} % at every measurement."
        return page.heading("Exact match") + page.paragraph(words)
    return _charts(story, "Exact match", "exact match, %", accuracy_lines, 0.0)


def _learning_rates(story: Story) -> str:
    """The learning rate of every round; a sentence if it never changed."""
    rates = [row.learning_rate for row in story.rows]
    known = [float(rate) for rate in rates if rate is not None]
    if len(known) < len(rates):
        return ""
    if len(set(known)) == 1:
        return page.heading("Learning rate") + page.paragraph(f"It was {known[0]:g} in every round.")
    pieces = [
        Line("learning rate", [(row.round, row.learning_rate or 0.0) for row in stage.rows], markers=len(stage.rows) == 1)
        for stage in story.stages
        if stage.rows
    ]
    parts = []
    for width, height, kind in ((1000, 240, "broad"), (340, 220, "narrow")):
        bands = stage_bands(story, story.axes[0])
        frame = Frame(width=width, height=height, named=False, whole=True, bands=bands, low=0.0)
        picture = plot_lines("Learning rate against rounds", "rounds", "", pieces, frame)
        parts.append(page.figure(picture, "", wide=kind == "broad", kind=kind))
    return page.heading("Learning rate") + "".join(parts)


def _charts(story: Story, name: str, y_label: str, lines_of: Callable[[Story, Axis], list[Line]], low: float | None) -> str:
    """One quantity against rounds, in a large chart, and against every cost, in small charts."""
    rounds, *costs = story.axes
    lines = lines_of(story, rounds)
    if not lines:
        return ""
    logarithm = low is None and spread_out([y for line in lines for _, y in line.points])
    y_label += ", logarithmic" if logarithm else ""
    parts = []
    for axis, large in ((rounds, True), (rounds, False), *((axis, False) for axis in costs)):
        frame = Frame(
            width=1000 if large else 340,
            height=360 if large else 260,
            named=False,
            whole=axis is rounds,
            bands=stage_bands(story, axis),
            marks=resume_marks(story, axis),
            low=low,
            logarithm=logarithm,
        )
        picture = plot_lines(
            f"{name} against {axis.label}",
            axis.label,
            y_label,
            _sparsely_marked(lines_of(story, axis), MARKED if large else MARKED // 3),
            frame,
            names=NAMES,
        )
        kind = "" if axis is not rounds else "broad" if large else "narrow"
        parts.append(page.figure(picture, "", wide=large, kind=kind))
    return page.heading(name) + page.legend(legend(lines, NAMES)) + parts[0] + page.side_by_side(*parts[1:])


def learning(story: Story) -> str:
    """The section on what was learned.

    Args:
      story: the run.
    """
    words = []
    if story.is_grown:
        words.append("Every second stage is shaded. Within a stage the model in training is its submodel.")
    if story.is_grown and story.record.base_loss is not None:
        within = ", and within it as if it ended there" if any(row.full_loss is not None for row in story.rows) else ""
        words[-1] += (
            " It is also the one that is evaluated there; the full model is evaluated before the first round and at the end "
            f"of each stage{within}, after what the submodel learned was transferred to every layer. In a stage at "
            "full depth the two models are the same."
        )
    if story.record.base_loss is not None:
        words.append(
            "Held-out points are joined if the next one was measured evaluate_every rounds later; others are separate."
        )
    if story.record.start_loss is not None:
        words.append(
            f"The run began with an existing adapter, whose held-out loss of {story.record.start_loss:.4f} is the first "
            f"point; that of the untuned base is {story.record.base_loss:.4f}."
        )
    if story.is_personal:
        words.append(
            "Held-out figures are means over all clients' own models; a client that has not trained has the first model."
        )
    if story.record.base_loss is None:
        words.append("There was no held-out data, so only the training loss is known.")
    if story.resumes:
        after = ", ".join(map(str, story.resumes))
        words.append(f"A dotted line with \u25b2 below it marks where the run was resumed (after round {after}).")
    return page.section(
        "learning",
        "What was learned",
        *map(page.paragraph, words),
        _losses(story),
        _accuracies(story),
        _learning_rates(story),
        _round_table(story),
    )


def _round_table(story: Story) -> str:
    every = -(-story.rounds // TABLE_ROWS)
    full = {point.round: point for piece in story.full_model for point in piece}
    axes = story.axes[1:]

    def line(index: int) -> list[Cell]:
        row = story.rows[index]
        number = row.round
        known = full.get(number)
        totals = [axis.values[number] for axis in axes]
        held_out = row.held_out_loss
        loss = row.loss if row.loss == row.loss else None
        return [
            number,
            row.stage + 1,
            row.layers,
            loss,
            held_out,
            None if known is None else known.loss,
            None if known is None else known.accuracy,
            *totals,
        ]

    rounds = [index for index in range(story.rounds) if (index + 1) % every == 0 or index == story.rounds - 1]
    part = "" if every == 1 else f", every {every}th round; metrics.jsonl has all"
    header = ["round", "stage", "layers", "training loss", "held-out loss within the stage", "full model's loss"]
    header += ["full model's exact match", *(axis.label for axis in axes)]
    return page.folded("Data: every round", page.table(f"Running totals after each round{part}", header, map(line, rounds)))
