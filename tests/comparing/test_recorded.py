"""Scores that runs recorded: means and differences over seeds, and arms or comparisons without any."""

import dataclasses

import pytest

from devft_jax.comparing.formats import to_plain, to_text
from devft_jax.comparing.page import comparison_html
from devft_jax.comparing.recorded import recorded_curves, recorded_table
from tests.comparing.comparisons import arm, comparison
from tests.comparing.test_scores import scored as final_scores
from tests.comparing.test_scores import with_scores
from tests.reporting.test_report_file import check_page, text_of
from tests.run_records import score_record

PLUS_MINUS = "\u00b1"


def scored(made, values):
    """An arm whose final models have these scores, one per seed, on the way from 0.25."""
    base = [score_record(value=0.25, standard_error=0.1)]
    outcomes = []
    for run, value in zip(made.outcomes, values, strict=True):
        final = [score_record(value=value, standard_error=0.1)]
        record = dataclasses.replace(run.record, base_scores=base, final_scores=final)
        within = [(0, base), (2, [score_record(value=(0.25 + value) / 2)]), (4, final)]
        outcomes.append(dataclasses.replace(run, record=record, scores=within))
    return dataclasses.replace(made, outcomes=outcomes)


def test_means_and_differences_are_over_seeds():
    reference, other = scored(arm("FedIT", [2.0, 3.0]), [0.5, 0.6]), scored(arm("DevFT", [2.5, 3.5]), [0.6, 0.71])
    made = comparison(reference, other, arm("local-only", [2.0, 2.0]))
    found = recorded_table(made, made.budgets[0])
    assert list(found.header) == ["", "own acc", "difference in own acc"]
    base, fedit, devft, local = found.rows
    assert base == ["untuned base", f"0.2500 {PLUS_MINUS} 0.1000", ""]
    assert fedit[1].startswith("0.5500 (")
    assert fedit[2] == "reference"
    assert devft[2].startswith("+0.1050 (")
    assert devft[2].endswith("*")
    # An arm without a global model is not scored.
    assert local[1:] == ["", ""]
    html = comparison_html(made)
    check_page(html)
    assert "own acc against rounds" in html
    assert "recorded by the runs" in text_of(html)
    assert "recorded by the runs" in to_text(made)
    [fedit, devft, local] = to_plain(made)["budgets"][0]["arms"]
    assert devft["recorded_scores"][0]["difference"] == pytest.approx(0.105)
    assert fedit["recorded_scores"][0]["by_seed"]["1"]["value"] == 0.6
    assert local["recorded_scores"] == []


def test_a_single_run_has_its_standard_error_over_items():
    made = comparison(scored(arm("FedIT", [2.0]), [0.5]))
    assert recorded_table(made, made.budgets[0]).rows[1][1] == f"0.5000 {PLUS_MINUS} 0.1000"


def test_final_scores_of_a_task_are_in_one_table():
    """What `devft compare --tasks` scored is not shown a second time; figures and other tasks stay."""
    arms = scored(arm("FedIT", [2.0, 3.0]), [0.5, 0.6]), scored(arm("DevFT", [2.5, 3.5]), [0.6, 0.71])
    results = {("FedIT", 0): final_scores(1, 0), ("DevFT", 0): final_scores(1, 1)}
    made = with_scores(comparison(*arms), results)
    assert recorded_table(made, made.budgets[0]) is None
    html = comparison_html(made)
    check_page(html)
    assert "own acc against rounds" in html
    for text in (text_of(html), to_text(made)):
        assert "recorded by the runs" not in text
        assert "Scores on tasks" in text
    other = score_record(task="other", value=0.4)
    [first, *rest] = arms[1].outcomes
    record = dataclasses.replace(first.record, final_scores=[*first.record.final_scores, other])
    both = dataclasses.replace(arms[1], outcomes=[dataclasses.replace(first, record=record), *rest])
    made = with_scores(comparison(arms[0], both), results)
    assert recorded_table(made, made.budgets[0]).header == ["", "other acc", "difference in other acc"]


def test_a_comparison_without_scores_shows_none():
    made = comparison(arm("FedIT", [2.0, 3.0]))
    assert recorded_table(made, made.budgets[0]) is None
    assert recorded_curves(made.budgets[0]) == []
