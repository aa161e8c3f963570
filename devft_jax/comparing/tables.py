"""The tables of a comparison as texts in columns, the same for the terminal, Markdown and the page."""

from collections.abc import Sequence
from dataclasses import dataclass

from devft_jax.comparing.measures import COSTS, LEARNED, TO_TARGET, Form, Measure, by_seed, difference, mean_of, reached
from devft_jax.comparing.results import ArmResult, Budget, Comparison, TaskScores
from devft_jax.comparing.scores import difference_over_items, mean_score, score_difference, scores_by_seed
from devft_jax.comparing.statistics import Estimate, estimate
from devft_jax.harness.results import TaskScore

NAME_WIDTH = 40
"""Most characters of an arm's name in text tables; longer names lose their middle."""


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
      title: title above the table.
      header: names of the columns; the first column names the rows.
      rows: texts, one per column.
      below: explanation of its marks.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    below: str = ""


def _used(measures: Sequence[Measure], budget: Budget, target: float | None) -> list[Measure]:
    return [
        measure for measure in measures if not measure.optional or any(by_seed(arm, measure, target) for arm in budget.arms)
    ]


def cell(found: Estimate | None, form: Form, *, sign: bool = False) -> str:
    """A mean as a table cell, with its interval; empty if there is none.

    Args:
      found: the mean.
      form: format of the figure.
      sign: whether a positive figure is shown with a sign.
    """
    return "" if found is None else form.shown(found.mean, found.interval, sign=sign)


def _counted(arm: ArmResult) -> str:
    done, all_ = len(arm.finished), len(arm.outcomes)
    return str(all_) if done == all_ else f"{done} of {all_}" if done else "failed"


def rate_of(arm: ArmResult) -> str:
    """The learning rates of an arm's stages, as text.

    Args:
      arm: the arm.
    """
    return ",".join(f"{rate:g}" for rate in arm.config.learning_rate)


def learned_table(comparison: Comparison, budget: Budget) -> Table:
    """Loss and exact match, with differences to the reference.

    Args:
      comparison: gives the reference and the target.
      budget: the budget whose arms are shown.
    """
    measures = _used(LEARNED, budget, comparison.target)
    header = ["", "rounds", "rank", "rate", "seeds"]
    for measure in measures:
        # Named, because the two columns may be in different parts of a wide table.
        difference_in = f"difference in {measure.title.removeprefix('held-out ')}"
        header += [measure.title, *(() if measure.optional else (difference_in,))]
    rows = [_base_row(budget, measures)] if any(arm.finished for arm in budget.arms) else []
    for arm in budget.arms:
        row = [arm.name, str(arm.rounds), str(arm.config.rank), rate_of(arm), _counted(arm)]
        for measure in measures:
            row.append(cell(mean_of(arm, measure), measure.form))
            if measure.optional:
                continue
            found = difference(comparison, budget, arm, measure)
            shown = cell(found, measure.form, sign=True) + ("*" if found is not None and found.sign else "")
            row.append("reference" if arm.name == comparison.reference else shown)
        rows.append(row)
    below = (
        f"differences are to {comparison.reference}, paired by seed; * the 95 % interval of the difference excludes zero"
        if len(comparison.seeds) > 1
        else f"differences are to {comparison.reference}; one seed has no interval"
    )
    return Table("What was learned", header, rows, below)


def _base_row(budget: Budget, measures: Sequence[Measure]) -> list[str]:
    """The untuned base, whose loss depends on the seed only if the held-out data does."""
    records = {seed: record for arm in budget.arms for seed, record in arm.records.items()}
    figures = {
        "final_loss": [record.base_loss for record in records.values()],
        "accuracy": [record.base_accuracy for record in records.values()],
    }
    row = ["untuned base", "", "", "", ""]
    for measure in measures:
        known = [figure for figure in figures.get(measure.name, ()) if figure is not None]
        row += [cell(estimate(known, measure.bounds), measure.form)]
        row += [] if measure.optional else [""]
    return row


SCORE = Form(digits=3)


def score_table(comparison: Comparison, budget: Budget) -> Table | None:
    """Scores on benchmark tasks, with differences to the reference; None if nothing was scored.

    Args:
      comparison: gives the scores and the reference.
      budget: the budget whose arms are shown.
    """
    scores = comparison.scores
    if scores is None or not scores.shown:
        return None
    one_seed, reference = len(comparison.seeds) == 1, budget.arm(comparison.reference)
    header, base = ["", "seeds"], ["untuned base", ""]
    rows = [[arm.name, _scored(scores, arm)] for arm in budget.arms]
    for score in scores.shown:
        name = f"{score.task} {score.shown_metric}"
        header += [name, f"difference in {name}"]
        untuned = None if scores.base is None else scores.base.find(score.task, score.metric, score.filter)
        base += ["" if untuned is None else _with_error(untuned.value, untuned.standard_error), ""]
        for arm, row in zip(budget.arms, rows, strict=True):
            found, apart = mean_score(scores, arm, score), score_difference(scores, arm, reference, score)
            star = "*" if apart is not None and apart.sign else ""
            shown = [cell(found, SCORE), cell(apart, SCORE, sign=True) + star]
            if one_seed:
                shown = _over_items(scores, arm, reference, score)
            row += [shown[0], ("reference" if shown[0] else "") if arm is reference else shown[1]]
    if one_seed:
        below = (
            "one seed has no interval: \u00b1 is the standard error over items; differences are to "
            f"{reference.name}, over the same items"
        )
    else:
        below = (
            f"means with 95 % intervals over seeds; differences are to {reference.name}, paired by seed; * the interval of "
            "the difference excludes zero; untuned base: standard error over items"
        )
    return Table("Scores on tasks", header, [base, *rows], f"{below}; {_tasks_in_words(scores)}")


def _scored(scores: TaskScores, arm: ArmResult) -> str:
    """How many of an arm's seeds have scores."""
    if arm.name in scores.left_out:
        return "not scored"
    done = sum(run.folder in scores.runs for run in arm.finished)
    return str(done) if done == len(arm.outcomes) else f"{done} of {len(arm.outcomes)}"


def _over_items(scores: TaskScores, arm: ArmResult, reference: ArmResult, score: TaskScore) -> list[str]:
    """The score of an arm's only run and its difference to the reference's, both with standard errors over items."""
    own = next(iter(scores_by_seed(scores, arm, score).values()), None)
    if own is None:
        return ["", ""]
    apart = score_difference(scores, arm, reference, score)
    paired = next(iter(difference_over_items(scores, arm, reference, score).values()), None)
    error = None if paired is None else paired.standard_error
    shown = "" if apart is None else _with_error(apart.mean, error, sign=True)
    return [_with_error(own.value, own.standard_error), shown]


def _with_error(value: float, error: float | None, *, sign: bool = False) -> str:
    shown = SCORE.shown(value, sign=sign)
    return shown if error is None else f"{shown} \u00b1 {SCORE.shown(error)}"


def _tasks_in_words(scores: TaskScores) -> str:
    """Items and worked examples of every task."""
    said = {}
    for score in scores.shown:
        shots = "" if score.shots is None else f", {score.shots} shot{'' if score.shots == 1 else 's'}"
        said[score.task] = f"{score.task}: {score.items} items{shots}"
    return "; ".join(said.values())


def cost_table(comparison: Comparison, budget: Budget) -> Table:
    """The costs of the runs.

    Args:
      comparison: gives the reference and the target.
      budget: the budget whose arms are shown.
    """
    measures = _used(COSTS, budget, comparison.target)
    rows = [[arm.name, *(cell(mean_of(arm, measure), measure.form) for measure in measures)] for arm in budget.arms]
    return Table(
        "What it cost",
        ["", *(measure.title for measure in measures)],
        rows,
        "bytes of all clients' messages; stages down: numbers of selected layers, or fused layers unless clients fuse them",
    )


def target_table(comparison: Comparison, budget: Budget) -> Table | None:
    """The costs up to the target loss; None if there is no target.

    Args:
      comparison: gives the reference and the target.
      budget: the budget whose arms are shown.
    """
    target = comparison.target
    if target is None:
        return None
    measures, rows = _used(TO_TARGET, budget, target), []
    for arm in budget.arms:
        hits = [reached(outcome, target) is not None for outcome in arm.finished]
        counted = f"{sum(hits)} of {len(arm.outcomes)}"
        rows.append([arm.name, counted, *(cell(mean_of(arm, each, target), each.form) for each in measures)])
    source = "as given" if comparison.target_given else f"the mean final loss of {comparison.reference}"
    return Table(
        f"To a held-out loss of {target:.4f}, {source}",
        ["", "seeds that reach it", *(measure.title for measure in measures)],
        rows,
        "means over the seeds that reach it, up to the first measurement there",
    )


def tuning_table(comparison: Comparison, budget: Budget) -> Table | None:
    """Held-out losses of the search for a learning rate; None if there was none.

    Args:
      comparison: gives the reference and the target.
      budget: the budget whose arms are shown.
    """
    if not comparison.rates:
        return None
    rows = []
    for arm in budget.arms:
        losses = arm.tuning or {}
        shown = ["failed" if losses.get(rate) is None else f"{losses[rate]:.4f}" for rate in comparison.rates]
        chosen = rate_of(arm) if any(loss is not None for loss in losses.values()) else "none"
        rows.append([arm.name, *shown, chosen])
    heads = [f"{rate:g}" for rate in comparison.rates]
    return Table(f"Learning rates, held-out loss on {seeds_in_words(comparison)}", ["", *heads, "chosen"], rows)


def seeds_in_words(comparison: Comparison) -> str:
    """The seeds of the search for a learning rate, in words.

    Args:
      comparison: one with such a search.
    """
    seeds = ", ".join(map(str, comparison.tuning_seeds))
    return f"seed {seeds}" if len(comparison.tuning_seeds) == 1 else f"seeds {seeds} (mean)"


def column_parts(rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """The columns after the first, in parts that each fit beside the first.

    Args:
      rows: rows of the table, including the header.
      width: characters per line.

    Returns:
      The indices of the columns of each part.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    parts: list[list[int]] = [[]]
    for index, needed in enumerate(widths[1:], 1):
        taken = min(widths[0], NAME_WIDTH) + sum(widths[each] + 2 for each in parts[-1])
        if parts[-1] and taken + 2 + needed > width:
            parts.append([])
        parts[-1].append(index)
    return parts
