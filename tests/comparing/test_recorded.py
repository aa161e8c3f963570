"""Scores that runs recorded: means and differences over seeds, and arms or comparisons without any."""

import dataclasses

import pytest

from devft_jax.comparing.formats import to_plain, to_text
from devft_jax.comparing.page import comparison_html
from devft_jax.comparing.recorded import recorded_curves, recorded_table
from tests.comparing.comparisons import arm, comparison
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


def test_a_comparison_without_scores_shows_none():
    made = comparison(arm("FedIT", [2.0, 3.0]))
    assert recorded_table(made, made.budgets[0]) is None
    assert recorded_curves(made.budgets[0]) == []
