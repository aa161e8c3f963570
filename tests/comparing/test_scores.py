"""Scores on tasks of given figures: means over seeds, differences to the reference, and how they are shown."""

import dataclasses

import pytest

from devft_jax.comparing.formats import to_markdown, to_plain, to_text
from devft_jax.comparing.page import comparison_html
from devft_jax.comparing.results import TaskScores
from devft_jax.comparing.tables import score_table
from devft_jax.comparing.verdict import fairness
from devft_jax.harness.results import Results, TaskScore
from tests.comparing.comparisons import arm, comparison
from tests.reporting.test_report_file import check_page, text_of

PLUS_MINUS = "\u00b1"


def scored(*hits):
    """Results on one task whose items are right (1) or wrong (0)."""
    mean = sum(hits) / len(hits)
    error = (sum((hit - mean) ** 2 for hit in hits) / (len(hits) - 1) / len(hits)) ** 0.5
    score = TaskScore("own", "acc", "none", mean, error, len(hits), 5, "1.0", True)
    return Results([score], {("own", "acc", "none"): dict(enumerate(map(float, hits)))}, {})


def with_scores(made, runs, **more):
    """The comparison with scores by arm and seed."""
    folders = {(each.name, run.seed): run.folder for each in made.budgets[0].arms for run in each.outcomes}
    found = {folders[key]: results for key, results in runs.items()}
    return dataclasses.replace(made, scores=TaskScores(scored(0, 0, 1, 1), found, **more))


def test_seeds_give_intervals_and_differences_are_paired_by_them():
    made = comparison(arm("FedIT", [2.0, 3.0, 4.0]), arm("DevFT", [2.5, 3.5, 4.5]), arm("local", [4.0, None, 4.1]))
    hits = {("FedIT", 0): (1, 0, 0, 0), ("FedIT", 1): (1, 1, 0, 0), ("FedIT", 2): (1, 1, 1, 0)}
    hits |= {("DevFT", 0): (1, 1, 0, 0), ("DevFT", 1): (1, 1, 1, 0), ("DevFT", 2): (1, 1, 1, 1)}
    made = with_scores(made, {key: scored(*of) for key, of in hits.items()}, left_out={"local": "has no global model"})
    found = score_table(made, made.budgets[0])
    base, fedit, devft, local = found.rows
    assert list(found.header) == ["", "seeds", "own acc", "difference in own acc"]
    assert base == ["untuned base", "", f"0.500 {PLUS_MINUS} 0.289", ""]
    # The middle of the logit scale, on which the interval has equal ends.
    assert fedit[:2] == ["FedIT", "3"]
    assert fedit[2].startswith(f"0.500 {PLUS_MINUS} ")
    assert fedit[3] == "reference"
    # The same in every seed: no interval, and no star.
    assert devft[2].startswith("0.750 (")
    assert devft[3] == "+0.250"
    assert local == ["local", "not scored", "", ""]
    assert "own: 4 items, 5 shots" in found.below
    assert "local has no global model." in to_text(made)
    plain = to_plain(made)
    [values] = plain["budgets"][0]["arms"][1]["scores"]
    assert (values["task"], values["metric"], values["shots"], values["seeds"]) == ("own", "acc", 5, 3)
    assert values["mean"] == pytest.approx(0.75)
    assert 0 < values["low"] < 0.75 < values["high"] < 1
    assert values["difference"] == {"mean": pytest.approx(0.25), "low": None, "high": None, "seeds": 3}
    assert values["by_seed"]["0"] == {
        "value": 0.5,
        "standard_error": pytest.approx(0.2887, abs=1e-4),
        "difference": 0.25,
        "difference_standard_error": 0.25,
    }
    assert plain["tasks"]["left_out"] == {"local": "has no global model"}
    assert plain["tasks"]["untuned_base"][0]["value"] == 0.5


def test_a_difference_whose_interval_excludes_zero_has_a_star():
    made = comparison(arm("FedIT", [2.0, 3.0]), arm("DevFT", [2.5, 3.5]))
    low, high = scored(*[0] * 99, 1), scored(*[0] * 50, *[1] * 50)
    higher = scored(*[0] * 49, *[1] * 51)
    made = with_scores(made, {("FedIT", 0): low, ("FedIT", 1): low, ("DevFT", 0): high, ("DevFT", 1): higher})
    assert score_table(made, made.budgets[0]).rows[2][3].endswith("*")


def test_one_seed_has_errors_over_items_and_says_so():
    made = comparison(arm("FedIT", [2.0]), arm("DevFT", [2.5]), arm("lost", [3.0]))
    runs = {("FedIT", 0): scored(1, 0, 0, 0), ("DevFT", 0): scored(1, 1, 0, 0)}
    made = with_scores(made, runs, errors={"runs/lost-0": "no memory."})
    found = score_table(made, made.budgets[0])
    assert found.rows[1] == ["FedIT", "1", f"0.250 {PLUS_MINUS} 0.250", "reference"]
    assert found.rows[2] == ["DevFT", "1", f"0.500 {PLUS_MINUS} 0.289", f"+0.250 {PLUS_MINUS} 0.250"]
    assert found.rows[3] == ["lost", "0 of 1", "", ""]
    assert "one seed has no interval" in found.below
    page = comparison_html(made)
    check_page(page)
    for text in (to_text(made), text_of(page), to_markdown(made)):
        assert "Scores on tasks" in text
        assert "lost, seed 0, has no scores on tasks: no memory." in " ".join(text.replace("\\", "").split())
    assert any("as by `devft evaluate`" in sentence for sentence in fairness(made))


def test_without_tasks_there_is_no_table():
    made = comparison(arm("FedIT", [2.0]))
    assert score_table(made, made.budgets[0]) is None
    assert to_plain(made)["tasks"] is None
    assert "Scores on tasks" not in to_text(made)
