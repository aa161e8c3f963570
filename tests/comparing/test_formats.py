"""A comparison of given figures as text, Markdown, JSON and CSV."""

import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.comparing.formats import WIDTH, arm_rows, run_rows, to_csv, to_markdown, to_plain, to_text
from devft_jax.comparing.measures import MEASURES
from devft_jax.comparing.page import comparison_html
from devft_jax.files import as_cell
from tests.comparing.comparisons import arm, comparison
from tests.reporting.test_report_file import check_page

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=90)


@settings(max_examples=15)
@given(st.lists(NAMES, min_size=1, max_size=12, unique=True), st.integers(1, 4), st.integers(0, 9))
def test_every_comparison_has_text_markdown_files_and_a_page(names, seeds, draw):
    arms = []
    for index, name in enumerate(names):
        losses = [2 + (index * 7 + seed * 3 + draw) % 5 / 3 for seed in range(seeds)]
        losses[0] = None if draw % 3 == 0 and index == len(names) - 1 else losses[0]
        arms.append(arm(name, losses, sent=10 ** (index % 7) if index else 0))
    made = comparison(*arms, kinds=("rounds", "bytes"), target=3.0)
    text = to_text(made)
    assert all(len(line) <= max(WIDTH, 100) or " " not in line.strip() for line in text.splitlines())
    tables = [line for line in to_markdown(made).splitlines() if line.startswith("|")]
    assert tables
    assert json.loads(json.dumps(to_plain(made)))["reference"] == names[0]
    arms, runs = arm_rows(made), run_rows(made)
    assert len(arms) == 2 * len(names)
    assert len(runs) == seeds * len(names)
    assert [row["arm"] for row in csv.DictReader(io.StringIO(to_csv(arms)))] == [as_cell(row["arm"]) for row in arms]
    check_page(comparison_html(made))


def test_rows_of_files_hold_every_measure():
    made = comparison(arm("FedIT", [2.0, 3.0]), arm("DevFT", [2.5, 3.5]), kinds=("rounds", "bytes"), target=2.5)
    row = arm_rows(made)[1]
    for measure in MEASURES:
        assert f"{measure.name}_mean" in row
        assert f"{measure.name}_difference_low" in row
    assert (row["budget"], row["arm"], row["final_loss_mean"]) == ("rounds", "DevFT", 3.0)
    assert row["final_loss_difference_mean"] == 0.5
    run = run_rows(made)[0]
    assert (run["budgets"], run["seed"], run["final_loss"], run["rounds_to_target"]) == ("rounds bytes", 0, 2.0, 4)
    assert run["seconds_total"] == 3.5
    assert len(to_csv(run_rows(made)).splitlines()) == 5


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", " =1", "\uff1d1"])
def test_no_name_is_a_formula_and_numbers_stay(name):
    made = comparison(arm(name, [1.5]), arm("b", [2.0]))
    [first, _] = csv.DictReader(io.StringIO(to_csv(arm_rows(made))))
    assert first["arm"].startswith("'")
    assert float(first["final_loss_mean"]) == 1.5
    assert to_plain(made)["budgets"][0]["arms"][0]["name"] == name


def test_no_name_is_markup_in_markdown():
    name = "a|b [x](http://evil) <b>`c`\x1b[31m\n# d"
    made = comparison(arm(name, [1.5]), arm("b", [2.0]), command="devft compare ```\nx")
    page = to_markdown(made)
    assert "a\\|b \\[x\\](http\\://evil) &lt;b&gt;\\`c\\`\\\\x1b\\[31m\\\\x0a# d" in page
    assert page.split("\n\n")[1] == "````\ndevft compare ```\nx\n````"
    assert page.replace("\n", "").isprintable()
