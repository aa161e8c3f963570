"""Scores that the runs of a comparison recorded on benchmark tasks (`--evaluate-tasks`): the final models' in a table, and
those during the runs in figures; means over seeds with intervals, for a single run with standard errors over items."""

from collections.abc import Mapping, Sequence
from typing import Any

from devft_jax.comparing.results import ArmResult, Budget, Comparison
from devft_jax.comparing.statistics import ANYWHERE, SHARE, Bounds, Estimate, estimate, paired_difference
from devft_jax.comparing.tables import NAME_WIDTH, Table
from devft_jax.reporting import page
from devft_jax.reporting.chart import Frame, Line, legend, plot_lines
from devft_jax.reporting.names import shortened
from devft_jax.reporting.units import with_error
from devft_jax.storage.result_records import ScoreRecord

Name = tuple[str, str]
"""Task and metric of a score."""


def recorded_table(comparison: Comparison, budget: Budget) -> Table | None:
    """The scores that the runs recorded of their final models, with differences to the reference; None if there are none.

    Tasks that `devft compare --tasks` scored the same models on are left out: `score_table` shows these.

    Args:
      comparison: gives the reference.
      budget: the budget whose arms are shown.
    """
    final = {arm.name: _final(arm) for arm in budget.arms}
    names = list(dict.fromkeys(name for runs in final.values() for scores in runs.values() for name in scores))
    elsewhere: set[str] = set() if comparison.scores is None else {score.task for score in comparison.scores.shown}
    names = [(task, metric) for task, metric in names if task not in elsewhere]
    if not names:
        return None
    header = ["", *(text for name in names for text in (" ".join(name), f"difference in {' '.join(name)}"))]
    base = {
        seed: _named(record.base_scores) for arm in budget.arms for seed, record in arm.records.items() if record.base_scores
    }
    rows = [["untuned base", *(text for name in names for text in (_cell(_of(base, name)), ""))]]
    for arm in budget.arms:
        row = [arm.name]
        for name in names:
            apart = _difference(final[arm.name], final[comparison.reference], name)
            own = arm.name == comparison.reference
            row += [_cell(_of(final[arm.name], name)), "reference" if own else _shown(apart, sign=True)]
        rows.append(row)
    below = f"differences are to {comparison.reference}, paired by seed; "
    below += "* its 95 % interval excludes zero; intervals are over seeds, standard errors (\u00b1) over items"
    return Table("Scores on benchmark tasks, recorded by the runs", header, rows, below)


def recorded_values(comparison: Comparison, budget: Budget, arm: ArmResult) -> list[dict[str, Any]]:
    """The recorded scores of an arm's final models as JSON-ready values.

    Args:
      comparison: gives the reference.
      budget: the budget of the arm.
      arm: the arm.
    """
    own, reference = _final(arm), _final(budget.arm(comparison.reference))
    names = dict.fromkeys(name for scores in own.values() for name in scores)
    values = []
    for task, metric in names:
        scores = _of(own, (task, metric))
        mean, apart = _mean(list(scores.values())), _difference(own, reference, (task, metric))
        values.append(
            {
                "task": task,
                "metric": metric,
                "mean": None if mean is None else mean.mean,
                "interval": None if mean is None else mean.interval,
                "difference": None if apart is None or arm.name == comparison.reference else apart.mean,
                "by_seed": {str(seed): score.to_plain() for seed, score in scores.items()},
            }
        )
    return values


def recorded_curves(budget: Budget) -> list[str]:
    """Figures of each recorded score against rounds; empty if no run was scored within its rounds.

    Args:
      budget: the budget whose arms are shown.
    """
    scored = [arm for arm in budget.arms if any(len(run.scores) > 2 for run in arm.finished)]
    names = dict.fromkeys(score.name for arm in scored for run in arm.finished for _, all_ in run.scores for score in all_)
    arms = [arm.name for arm in scored]
    if not names:
        return []
    figures = []
    for name in names:
        lines = [line for arm in scored if (line := _line(arm, name)).points]
        title = f"{' '.join(name)} against rounds, equal {budget.kind}"
        frame = Frame(width=480, height=340, named=False, whole=True)
        if lines:
            figures.append(page.figure(plot_lines(title, "rounds", "score", lines, frame, names=arms), "", wide=False))
    looks = legend([Line(name, [(0, 0)]) for name in arms], arms)
    return [
        page.heading("Scores during the runs"),
        page.paragraph(
            "The full model's scores on benchmark tasks, means over seeds with their intervals; a single run has one "
            "standard error over items up and down."
        ),
        page.legend([(look, shortened(name, NAME_WIDTH)) for look, name in looks]),
        page.side_by_side(*figures, least=420),
    ]


def _line(arm: ArmResult, name: Name) -> Line:
    """A score against rounds, where all of the arm's runs have it."""
    runs = [{after: _named(scores) for after, scores in run.scores} for run in arm.finished if run.scores]
    points, intervals = [], []
    for after in sorted(set.intersection(*map(set, runs))):
        found = [scores[name] for run in runs if name in (scores := run[after])]
        mean = _mean(found) if len(found) == len(runs) else None
        if mean is not None:
            points.append((float(after), mean.mean))
            error = found[0].standard_error if len(found) == 1 else None
            intervals.append((mean.mean - error, mean.mean + error) if error else mean.interval)
    return Line(arm.name, points, intervals=intervals)


def _named(scores: Sequence[ScoreRecord] | None) -> dict[Name, ScoreRecord]:
    return {score.name: score for score in scores or ()}


def _final(arm: ArmResult) -> dict[int, dict[Name, ScoreRecord]]:
    """The scores of an arm's final models by seed."""
    return {seed: _named(record.final_scores) for seed, record in arm.records.items()}


def _of(runs: Mapping[int, Mapping[Name, ScoreRecord]], name: Name) -> dict[int, ScoreRecord]:
    return {seed: scores[name] for seed, scores in runs.items() if name in scores}


def _bounds(scores: Sequence[ScoreRecord]) -> Bounds:
    return SHARE if all(0 <= score.value <= 1 for score in scores) else ANYWHERE


def _mean(scores: Sequence[ScoreRecord]) -> Estimate | None:
    return estimate([score.value for score in scores], _bounds(scores))


def _difference(
    mine: Mapping[int, Mapping[Name, ScoreRecord]], theirs: Mapping[int, Mapping[Name, ScoreRecord]], name: Name
) -> Estimate | None:
    own, other = _of(mine, name), _of(theirs, name)
    before, after = ({seed: score.value for seed, score in each.items()} for each in (other, own))
    return paired_difference(after, before, _bounds([*own.values(), *other.values()]))


def _cell(scores: Mapping[int, ScoreRecord]) -> str:
    """The mean over seeds; of a single run, or of a score that is the same for all seeds, with its error over items."""
    found = list(scores.values())
    if found and len({score.value for score in found}) == 1:
        return with_error(found[0].value, found[0].standard_error)
    return _shown(_mean(found))


def _shown(found: Estimate | None, *, sign: bool = False) -> str:
    if found is None:
        return ""
    text = f"{found.mean:+.4f}" if sign else f"{found.mean:.4f}"
    if found.interval is None:
        return text
    low, high = (f"{end:+.4f}" if sign else f"{end:.4f}" for end in found.interval)
    return f"{text} ({low} to {high}){'*' if sign and found.sign else ''}"
