"""Scores on benchmark tasks in the report: the table, the figures, and runs that were scored in part or not at all."""

import dataclasses

from devft_jax.reporting.report import report_html
from devft_jax.reporting.report_file import read_settings, read_story
from devft_jax.reporting.scores import scored_models
from tests.reporting.stories import write_story
from tests.reporting.test_report_file import check_page, text_of
from tests.run_records import score_record

PLUS_MINUS = "\u00b1"


def scored_story(folder, *, final=True):
    """A run of four rounds, scored before them, after the second and fourth, and at the end."""
    story = read_story(write_story(folder, rounds=4, depths=(2, 8), evaluate_tasks=("own", "a<b"), evaluate_tasks_every=2))

    def scores(value, change=None):
        more = {"change": change, "change_error": None if change is None else 0.03}
        strict = score_record(task="a<b", metric="exact_match", filter="strict", value=value / 2, shots=None, **more)
        return [score_record(value=value, **more), strict]

    rows = [dataclasses.replace(row, scores=scores(0.4 + row.round / 100, 0.01)) for row in story.rows]
    rows[0].scores = rows[2].scores = None
    last = scores(0.44, 0.04) if final else None
    record = dataclasses.replace(story.record, base_scores=scores(0.4), final_scores=last)
    return dataclasses.replace(story, rows=rows, record=record)


def test_base_and_final_model_are_in_a_table_and_every_task_in_a_figure(tmp_path):
    story = scored_story(tmp_path / "run")
    # The last round's model is the final one.
    assert [after for after, _ in scored_models(story)] == [0, 2, 4]
    html = report_html(story, read_settings(story.config))
    tree, words = check_page(html), text_of(html)
    assert "final model" in words
    assert f"own acc 0 5 0.4000 {PLUS_MINUS} 0.2500 0.4400 {PLUS_MINUS} 0.2500 +0.0400 {PLUS_MINUS} 0.0300" in words
    assert "a<b exact_match (strict) \u2013 5" in words
    figures = [svg.get("aria-label") or "" for svg in tree.iter("svg")]
    assert sum(label.startswith("own against rounds") for label in figures) == 1
    assert sum(label.startswith("a<b against rounds") for label in figures) == 1
    assert '<a href="#scores">' in html


def test_an_unfinished_run_shows_the_last_round_that_was_scored(tmp_path):
    story = scored_story(tmp_path / "run", final=False)
    words = text_of(report_html(story, read_settings(story.config)))
    assert "after round 4" in words
    only_base = dataclasses.replace(story, rows=[dataclasses.replace(row, scores=None) for row in story.rows])
    html = report_html(only_base, read_settings(only_base.config))
    check_page(html)
    assert f"own acc 0 5 0.4000 {PLUS_MINUS} 0.2500" in text_of(html)
    assert "own against rounds" not in html


def test_a_run_without_scores_has_no_such_section(tmp_path):
    story = read_story(write_story(tmp_path / "run", rounds=4))
    html = report_html(story, read_settings(story.config))
    check_page(html)
    assert "benchmark tasks" not in text_of(html).split("Configuration and reproduction")[0]
