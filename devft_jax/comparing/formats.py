"""A comparison as text, Markdown, JSON and CSV; only this module knows the names in these files.

comparison.json    everything: means, intervals, differences, every seed's own figures (`to_plain`)
comparison.csv     a row for each budget and arm (`arm_rows`)
runs.csv           a row for each run (`run_rows`)
comparison.md      the tables and sentences (`to_markdown`), as `to_text` shows them in a terminal
"""

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from devft_jax.comparing.measures import MEASURES, by_seed, difference, mean_of
from devft_jax.comparing.recorded import recorded_table, recorded_values
from devft_jax.comparing.results import ArmResult, Budget, Comparison, Outcome
from devft_jax.comparing.scores import interval_values, score_notes, score_values
from devft_jax.comparing.tables import (
    NAME_WIDTH,
    Table,
    column_parts,
    cost_table,
    learned_table,
    rate_of,
    score_table,
    target_table,
    tuning_table,
)
from devft_jax.comparing.verdict import as_text, fairness, notes, verdict
from devft_jax.config.files import to_plain as config_to_plain
from devft_jax.files import as_cell, as_code_block, as_markdown
from devft_jax.reporting.names import shortened
from devft_jax.reporting.table import table

WIDTH = 140
"""Width of tables as text; further columns continue below."""


@dataclass(frozen=True)
class Section:
    """A part of a comparison as it is shown.

    Attributes:
      title: the heading.
      tables: tables below the heading.
      paragraphs: paragraphs below the tables.
    """

    title: str
    tables: Sequence[Table] = ()
    paragraphs: Sequence[str] = ()


def sections(comparison: Comparison) -> list[Section]:
    """Everything that is shown, in order.

    Args:
      comparison: the comparison.
    """
    shown = []
    for budget in comparison.budgets:
        found = [
            learned_table(comparison, budget),
            recorded_table(comparison, budget),
            score_table(comparison, budget),
            cost_table(comparison, budget),
            target_table(comparison, budget),
            tuning_table(comparison, budget),
        ]
        paragraphs = [*notes(budget), *score_notes(comparison, budget)]
        shown.append(Section(budget.text, [each for each in found if each is not None], paragraphs))
    shown.append(Section("Conclusions", paragraphs=verdict(comparison)))
    shown.append(Section("How it was compared", paragraphs=fairness(comparison)))
    return shown


def table_lines(shown: Table, width: int = WIDTH) -> list[str]:
    """A table as aligned lines; columns that do not fit continue below, each part with the rows' names.

    Args:
      shown: the table.
      width: characters per line.
    """
    rows = [[shortened(row[0], NAME_WIDTH), *row[1:]] for row in (shown.header, *shown.rows)]
    parts = column_parts(rows, width)
    lines = [shown.title]
    for number, part in enumerate(parts):
        lines += [""] if number else []
        lines += table([[row[0], *(row[index] for index in part)] for row in rows])
    return lines + ([f"({shown.below})"] if shown.below else [])


def to_text(comparison: Comparison) -> str:
    """The comparison for a terminal, tables within `WIDTH` columns.

    Args:
      comparison: the comparison.
    """
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
    """The comparison as a page of Markdown.

    Args:
      comparison: the comparison.
    """
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


def to_plain(comparison: Comparison) -> dict[str, Any]:
    """Everything as JSON-ready values: means, intervals, differences, and every seed's own figures.

    Args:
      comparison: the comparison.
    """
    return {
        "reference": comparison.reference,
        "seeds": comparison.seeds,
        "target": comparison.target,
        "target_given": comparison.target_given,
        "tuning_seeds": list(comparison.tuning_seeds),
        "rates": comparison.rates,
        "common": config_to_plain(comparison.common),
        "command": comparison.command,
        "budgets": [
            {
                "kind": budget.kind,
                "text": budget.text,
                "left_out": list(budget.left_out),
                "arms": [_arm_values(comparison, budget, arm) for arm in budget.arms],
            }
            for budget in comparison.budgets
        ],
        "tasks": _task_values(comparison),
        "verdict": verdict(comparison),
        "notes": fairness(comparison),
    }


def _task_values(comparison: Comparison) -> dict[str, Any] | None:
    """The tasks, the untuned base's scores, and the arms and runs without scores; None if nothing was scored."""
    scores = comparison.scores
    if scores is None:
        return None
    base = [] if scores.base is None else scores.base.to_plain()["scores"]
    said = {"left_out": dict(scores.left_out), "errors": dict(scores.errors)}
    return {"options": dict(scores.asked), "untuned_base": base, **said}


def _arm_values(comparison: Comparison, budget: Budget, arm: ArmResult) -> dict[str, Any]:
    return {
        "name": arm.name,
        "algorithm": arm.config.algorithm,
        "growth": arm.config.growth,
        "rounds": arm.rounds,
        "rank": arm.config.rank,
        "learning_rate": list(arm.config.learning_rate),
        "changes": dict(arm.changes),
        "note": arm.note,
        "judged": _judged(arm),
        "tuning": None if arm.tuning is None else {f"{rate:g}": loss for rate, loss in arm.tuning.items()},
        "runs": [{"seed": run.seed, "folder": run.folder, "error": run.error} for run in arm.outcomes],
        "measures": {
            measure.name: {
                **interval_values(mean_of(arm, measure, comparison.target)),
                "difference": interval_values(difference(comparison, budget, arm, measure)),
                "by_seed": {str(seed): value for seed, value in by_seed(arm, measure, comparison.target).items()},
            }
            for measure in MEASURES
        },
        "recorded_scores": recorded_values(comparison, budget, arm),
        "scores": score_values(comparison, budget, arm),
    }


def _judged(arm: ArmResult) -> str:
    return "mean over clients' own models" if arm.personal else "global model"


def arm_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row for each budget and arm, as in comparison.csv.

    Args:
      comparison: the comparison.
    """
    rows = []
    for budget in comparison.budgets:
        for arm in budget.arms:
            row: dict[str, Any] = {
                "budget": budget.kind,
                "arm": arm.name,
                "algorithm": arm.config.algorithm,
                "growth": arm.config.growth,
                "rounds": arm.rounds,
                "rank": arm.config.rank,
                "judged": _judged(arm),
                "note": arm.note,
                "learning_rate": as_text(arm.config.learning_rate),
                "seeds": len(arm.outcomes),
            }
            for measure in MEASURES:
                found = interval_values(mean_of(arm, measure, comparison.target))
                apart = interval_values(difference(comparison, budget, arm, measure))
                row |= {f"{measure.name}_{part}": value for part, value in found.items()}
                row |= {f"{measure.name}_difference_{part}": value for part, value in apart.items()}
            rows.append(row)
    return rows


def run_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row for each run, as in runs.csv; a run that serves several budgets names all of them.

    Args:
      comparison: the comparison.
    """
    return [
        {
            "budgets": " ".join(listed.budgets),
            "arm": listed.arm.name,
            "seed": listed.run.seed,
            "folder": listed.run.folder,
            "rounds": listed.arm.rounds,
            "rank": listed.arm.config.rank,
            "learning_rate": rate_of(listed.arm),
            "error": listed.run.error,
            **{measure.name: measure.of(listed.run, comparison.target) for measure in MEASURES},
            "versions": _versions(listed.run),
        }
        for listed in comparison.runs
    ]


def _versions(run: Outcome) -> str:
    return "" if run.record is None else " ".join(f"{name} {value}" for name, value in run.record.versions.items())


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as the text of a CSV file.

    Args:
      rows: one or more, all with the same columns.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: as_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()
