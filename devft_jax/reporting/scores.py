"""Scores of the full model on benchmark tasks: base and final model in a table, and a figure of each task over rounds."""

import math
from collections.abc import Sequence

from devft_jax.reporting import page
from devft_jax.reporting.chart import Frame, Line, legend, plot_lines
from devft_jax.reporting.curves import close_together, resume_marks, stage_bands
from devft_jax.reporting.page import Cell
from devft_jax.reporting.story import Story
from devft_jax.reporting.units import with_error
from devft_jax.storage.result_records import ScoreRecord


def task_scores(story: Story) -> str:
    """The section on scores; empty if the model was not scored on tasks.

    Args:
      story: the run.
    """
    scored = scored_models(story)
    if not scored:
        return ""
    words = (
        "The full model on benchmark tasks, before the first round and within stages as if the stage ended there, by "
        "lm-evaluation-harness. Vertical lines are one standard error up and down, over the items of a task. All models of "
        "the run answer the same items, so the standard error of a difference may be smaller than those of the two scores."
    )
    names = list(dict.fromkeys(score.task for _, scores in scored for score in scores))
    figures = [_figure(story, scored, task) for task in names] if len(scored) > 1 else []
    return page.section(
        "scores",
        "Scores on benchmark tasks",
        page.paragraph(words),
        page.scrolling(_table(story)),
        page.side_by_side(*figures, least=420) if figures else "",
        page.folded("Data: every score", _every_score(scored)),
    )


def is_scored(story: Story) -> bool:
    """Whether any model of a run was scored on tasks.

    Args:
      story: the run.
    """
    return bool(scored_models(story))


def scored_models(story: Story) -> list[tuple[int, Sequence[ScoreRecord]]]:
    """(rounds done, scores) of every full model that was scored: the base, within the run, and the final one.

    Args:
      story: the run.
    """
    base, final = story.record.base_scores, story.record.final_scores
    found: list[tuple[int, Sequence[ScoreRecord]]] = [(0, base)] if base else []
    # The final model is that of the last round.
    found += [(row.round, row.scores) for row in story.rows if row.scores and not (final and row.round == story.rounds)]
    return found + ([(story.rounds, final)] if final else [])


def _figure(story: Story, scored: Sequence[tuple[int, Sequence[ScoreRecord]]], task: str) -> str:
    """A task's metrics over the rounds; points are joined if they are as close as the scorings within the run."""
    own = [(rounds, score) for rounds, scores in scored for score in scores if score.task == task]
    metrics = list(dict.fromkeys(score.name[1] for _, score in own))
    lines = []
    for metric in metrics:
        found = {number: score for number, score in own if score.name[1] == metric and math.isfinite(score.value)}
        points = [(number, score.value) for number, score in found.items()]
        for part in close_together(points, story.config.evaluate_tasks_every):
            intervals = [_interval(found[number]) for number, _ in part]
            lines.append(Line(metric, part, intervals=intervals, joined=len(part) > 1))
    if not lines:
        return ""
    axis = story.axes[0]
    frame = Frame(
        width=480,
        height=300,
        named=False,
        whole=True,
        bands=stage_bands(story, axis),
        marks=resume_marks(story, axis),
    )
    picture = plot_lines(f"{task} against rounds", "rounds", "score", lines, frame, names=metrics)
    return page.figure(picture, "", page.legend(legend(lines, metrics)), wide=False)


def _interval(score: ScoreRecord) -> tuple[float, float] | None:
    error = score.standard_error
    return None if not error else (score.value - error, score.value + error)


def _table(story: Story) -> str:
    """Base and final model, or the last that was scored."""
    base = {score.name: score for score in story.record.base_scores or ()}
    after, last = scored_models(story)[-1]
    label = "final model" if story.record.final_scores else f"after round {after}" if after else ""
    rows: list[list[Cell]] = []
    for score in last:
        before = base.get(score.name)
        row: list[Cell] = [*score.name, score.shots, score.items, _shown(before)]
        rows.append([*row, _shown(score), _change(score)] if label else row)
    header = ["task", "metric", "worked examples", "items", "untuned base"]
    header += [label, "difference"] if label else []
    return page.table("Scores with standard errors, and the mean difference over the same items", header, rows, "figures")


def _shown(score: ScoreRecord | None) -> str | None:
    return None if score is None else with_error(score.value, score.standard_error)


def _change(score: ScoreRecord) -> str | None:
    return None if score.change is None else with_error(score.change, score.change_error, sign=True)


def _every_score(scored: Sequence[tuple[int, Sequence[ScoreRecord]]]) -> str:
    header = ["task", "metric", "round", "items", "score", "difference to the untuned base"]
    rows: list[list[Cell]] = [
        [*score.name, rounds, score.items, _shown(score), _change(score)] for rounds, scores in scored for score in scores
    ]
    return page.table("Every score", header, sorted(rows, key=lambda row: (str(row[0]), str(row[1]))))
