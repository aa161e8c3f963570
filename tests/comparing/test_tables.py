"""What a comparison says of given figures: statistics, tables in every form, sentences, and the page."""

import csv
import dataclasses
import io
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.comparing.compare import _csv
from devft_jax.comparing.page import comparison_html, mean_curve
from devft_jax.comparing.tables import (
    BYTES_UP,
    FINAL_LOSS,
    LEARNED,
    MEASURES,
    WIDTH,
    Form,
    arm_rows,
    column_parts,
    fairness,
    fronts,
    judged_alike,
    learned_table,
    pareto,
    reached,
    run_rows,
    table_lines,
    target_table,
    to_markdown,
    to_plain,
    to_text,
    unlike,
    verdict,
)
from devft_jax.files import as_cell
from devft_jax.reporting.names import shortened
from devft_jax.reporting.units import BYTES, SECONDS
from tests.comparing.comparisons import arm, comparison
from tests.reporting.test_report_file import check_page, text_of

PLUS_MINUS, ELLIPSIS = "\u00b1", "\u2026"


def cells(table, row):
    return dict(zip(table.header, next(each for each in table.rows if each[0] == row), strict=False))


def test_means_intervals_and_paired_differences_are_in_the_table():
    made = comparison(arm("FedIT", [2.0, 3.0, 4.0]), arm("DevFT", [2.5, 3.5, 4.51], accuracy=0.25))
    found = learned_table(made, made.budgets[0])
    base, fedit, devft = found.rows
    assert base[0] == "untuned base"
    assert base[5] == "5.000"
    # t with 2 degrees of freedom is 4.303; the seeds' standard deviation 1.
    factor = math.exp(4.302653 / math.sqrt(3) / 3)
    assert fedit[5] == f"3.000 ({3 / factor:.3f} to {3 * factor:.3f})"
    assert fedit[6] == "reference"
    assert devft[6] == f"+0.503 {PLUS_MINUS} 0.014*"
    # In every seed the same: that tells nothing of other seeds, so it has no interval that excludes zero.
    assert devft[7:] == ["25.0%", "+15.0%"]
    assert "paired by seed" in found.below


def test_one_seed_has_no_interval_and_says_so():
    made = comparison(arm("FedIT", [2.0]), arm("DevFT", [2.5]))
    found = learned_table(made, made.budgets[0])
    assert found.rows[2][5:7] == ["2.500", "+0.500"]
    assert "one seed has no interval" in found.below
    assert PLUS_MINUS not in to_text(made)
    sentences = verdict(made)
    assert sentences[0] == "At equal rounds, against FedIT at 2.000, held-out loss is higher with DevFT (+0.500)."
    assert sentences[-1] == "This is one seed; how far other seeds lie apart it does not tell."


def test_the_verdict_follows_the_intervals():
    made = comparison(
        arm("FedIT", [2.0, 3.0, 4.0]),
        arm("worse", [2.5, 3.5, 4.51]),
        arm("better", [1.9, 2.9, 3.905], sent=500),
        arm("unclear", [3.0, 2.0, 4.5]),
        arm("twin", [2.0, 3.0, 4.0]),
        kinds=("rounds", "bytes"),
    )
    first, second, best, by_bytes, by_work, *others = verdict(made)
    assert first.startswith("At equal rounds, against FedIT at 3.000")
    assert "held-out loss is lower with better (-0.098" in first
    assert "higher with worse (+0.503" in first
    assert "the same with twin" in first
    assert second.startswith("At equal rounds no difference in held-out loss can be told between FedIT and unclear")
    assert best.endswith("with 50% of FedIT's bytes up and 100% of FedIT's FLOPs.")
    assert by_bytes == "On the Pareto front of mean loss and bytes sent up at equal rounds: better."
    assert "training work" in by_work
    assert others[0].startswith("At equal bytes")
    assert "over 3 seeds" in others[-1]
    assert "of 8 differences some may exclude zero by chance" in others[-1]


def test_what_holds_all_data_in_one_place_is_no_rival_in_bytes():
    made = comparison(arm("FedIT", [2.0, 3.0]), arm("central", [1.0, 2.0], sent=0, pools=True), arm("c", [3.0, 4.0]))
    assert fronts(made.budgets[0], BYTES_UP) == ["FedIT"]
    assert any("of those that keep data apart is that of FedIT" in sentence for sentence in verdict(made))


def test_a_failed_seed_is_counted_and_told_and_an_arm_without_results_is_no_number():
    made = comparison(arm("FedIT", [2.0, 3.0, 4.0]), arm("shaky", [2.5, None, 4.5]), arm("gone", [None, None, None]))
    found = learned_table(made, made.budgets[0])
    assert cells(found, "shaky")["seeds"] == "2 of 3"
    assert cells(found, "shaky")["held-out loss"].startswith("3.500")
    gone = next(row for row in found.rows if row[0] == "gone")
    assert gone[4:] == ["failed", "", "", "", ""]
    text = to_text(made)
    assert "shaky, seed 1, failed: 3 of 4 updates are not finite." in text
    # The difference is over the two seeds that both have.
    assert "+0.500" in text
    plain = to_plain(made)["budgets"][0]["arms"][1]
    assert plain["measures"]["final_loss"]["difference"]["seeds"] == 2
    assert plain["runs"][1]["error"] == "3 of 4 updates are not finite."


def test_without_a_result_of_the_reference_nothing_is_claimed():
    gone = comparison(arm("FedIT", [None, None]), arm("DevFT", [1.0, 2.0]))
    assert verdict(gone)[0] == "At equal rounds nothing can be said beside FedIT: its runs failed."
    blind = comparison(arm("FedIT", [None]), arm("DevFT", [None]))
    unknown = [arm(name, [3.0], final_loss=None) for name in ("FedIT", "DevFT")]
    assert "there is no held-out data" in verdict(comparison(*unknown))[0]
    for made in (gone, blind, comparison(*unknown)):
        check_page(comparison_html(made))
        assert to_text(made)
        assert to_markdown(made)


def test_the_way_to_a_target_is_told_of_those_that_reach_it_alone():
    made = comparison(arm("FedIT", [2.0, 3.0, 4.0]), arm("DevFT", [4.4, 4.5, 4.6]), target=3.6)
    found = target_table(made, made.budgets[0])
    assert found.title == "To a held-out loss of 3.6000, the mean final loss of FedIT"
    # From 5 in four steps: to 2 the second is at 3.5, to 3 the third.
    row = cells(found, "FedIT")
    assert row["seeds that reach it"] == "2 of 3"
    assert row["rounds"].startswith("2.5")
    assert row["sent up"].startswith("625")
    assert cells(found, "DevFT") == {
        "": "DevFT", "seeds that reach it": "0 of 3", "rounds": "", "sent up": "", "training work": "", "training": ""
    }  # fmt: skip
    assert reached(made.budgets[0].arms[0].outcomes[0], 3.6).round == 2
    assert reached(made.budgets[0].arms[0].outcomes[0], 5.0).round == 0
    assert target_table(comparison(arm("a", [1.0])), made.budgets[0]) is None
    asked = comparison(arm("FedIT", [2.0]), target=3.5, given=True)
    assert "as asked for" in target_table(asked, asked.budgets[0]).title


def test_means_over_own_models_are_named():
    spread = {"losses": [1.0, 2.0], "accuracies": [0.1, 0.2]}
    alone = arm("alone", [3.0, 3.0], personal_models=True, personal=spread)
    both = arm("both", [2.0, 2.0], personal=spread)
    made = comparison(arm("FedIT", [2.0, 3.0]), alone, both)
    assert any("Every client has a model of its own in alone" in sentence for sentence in fairness(made))
    assert to_plain(made)["budgets"][0]["arms"][1]["judged"] == "mean over clients' own models"
    # The own models beside a global one are a column, which is left out where no arm has them.
    assert cells(learned_table(made, made.budgets[0]), "both")["clients' own models"] == "1.500"
    assert cells(learned_table(made, made.budgets[0]), "alone")["clients' own models"] == ""
    assert "In both figures are of the one model that stands for all clients" in " ".join(fairness(made))
    plain = comparison(arm("FedIT", [2.0, 3.0]))
    assert "clients' own models" not in learned_table(plain, plain.budgets[0]).header


def test_what_is_not_equal_is_told():
    own = arm("own", [2.0], changes={"local_steps": 3, "learning_rate": [0.5]}, note="rank 2")
    short = arm("short", [2.0], changes={})
    short.config["rounds"] = 2
    made = comparison(arm("FedIT", [2.0]), own, short)
    said = " ".join(fairness(made))
    assert "Learning rates were given, not tuned here: FedIT 0.0001, own 0.5, short 0.0001." in said
    assert "own has options of its own: local_steps 3, learning_rate 0.5." in said
    assert "Its local_steps give own other numbers of examples in a round." in said
    assert "schedules of their own over their rounds: short." in said
    assert "judged every round" in said
    assert "not all made with the same versions" not in said
    other = comparison(arm("FedIT", [2.0]), arm("new", [2.0], versions={"jax": "2"}))
    assert "not all made with the same versions" in " ".join(fairness(other))


def test_tuning_is_told_with_every_loss_and_whether_the_best_lies_at_an_end():
    rates = (0.001, 0.003, 0.01)
    inside = arm("inside", [2.0], changes={"learning_rate": [0.003]}, tuning=dict(zip(rates, (3.0, 2.0, 4.0), strict=True)))
    edge = arm("edge", [2.0], changes={"learning_rate": [0.01]}, tuning=dict(zip(rates, (3.0, None, 1.0), strict=True)))
    made = comparison(inside, edge, rates=rates)
    text = to_text(made)
    assert "Learning rates, held-out loss on seed 1000" in text
    [row] = [line.split() for line in text.splitlines() if line.startswith("edge") and "failed" in line]
    assert row == ["edge", "3.0000", "failed", "1.0000", "0.01"]
    assert "the best of 0.001, 0.003, 0.01" in text.replace("\n  ", " ")
    assert "At an end of these rates lies that of edge" in text.replace("\n  ", " ")


POINTS = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3), st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=9
)


@given(POINTS)
def test_the_front_is_what_nothing_beats(points):
    front = pareto(points)
    for name, (x, y) in points.items():
        beaten = any((a <= x and b <= y) and (a < x or b < y) for a, b in points.values())
        assert (name in front) != beaten
    assert [points[name] for name in front] == sorted(points[name] for name in front)


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
    assert [row["arm"] for row in csv.DictReader(io.StringIO(_csv(arms)))] == [as_cell(row["arm"]) for row in arms]
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
    assert len(_csv(run_rows(made)).splitlines()) == 5


def test_wide_tables_go_on_beneath_with_their_names():
    made = comparison(arm("a" * 60, [2.0, 3.0]), arm("b", [2.5, 3.7], seconds=123456.0))
    lines = table_lines(learned_table(made, made.budgets[0]), width=80)
    assert max(map(len, lines[:-1])) <= 80
    assert len([line for line in lines if line.startswith("b ")]) == 4
    assert len(shortened("a" * 60, 40)) == 40
    assert shortened("x" * 30 + "y" * 30, 40) == "x" * 20 + ELLIPSIS + "y" * 19
    assert shortened("short", 40) == "short"


@pytest.mark.parametrize(
    ("form", "values", "expected"),
    [
        (FINAL_LOSS.form, (1.23456, (1.22226, 1.24686)), f"1.235 {PLUS_MINUS} 0.012"),
        (FINAL_LOSS.form, (1.23456, (0.9, 1.7)), "1.235 (0.900 to 1.700)"),
        (LEARNED[1].form, (0.123, None), "12.3%"),
        (LEARNED[1].form, (0.123, (0.119, 0.127)), f"12.3 {PLUS_MINUS} 0.4%"),
        (LEARNED[1].form, (0.05, (0.002, 0.6)), "5.0% (0.2 to 60.0%)"),
        (Form(BYTES), (13_762_560, None), "13.8 MB"),
        (Form(BYTES), (512, None), "512 B"),
        (Form(BYTES), (0, None), "0 B"),
        (Form(SECONDS), (12.34, (11.34, 13.34)), f"12.3 {PLUS_MINUS} 1.0 s"),
        (Form(SECONDS), (150.0, (144.0, 156.0)), f"2.50 {PLUS_MINUS} 0.10 min"),
    ],
)
def test_figures_are_shown_in_one_unit_with_their_interval(form, values, expected):
    assert form.shown(*values) == expected


def test_curves_are_means_at_the_rounds_that_all_seeds_have():
    made = arm("FedIT", [2.0, 3.0, None])
    [line] = mean_curve(made, "bytes_up", joined=True)
    assert line.points == [(250.0 * number, 5 - 2.5 * number / 4) for number in range(5)]
    assert line.intervals[0] is None
    low, high = line.intervals[-1]
    assert 0 < low < 2 < 3 < high
    # Against what differs between arms at the same rounds, points stand alone.
    [alone] = mean_curve(made, "bytes_up", joined=False)
    assert (alone.points, alone.joined, line.joined) == (line.points, False, True)


def judged_at(made, rounds, every):
    """The arm with its runs judged after these rounds alone."""
    outcomes = [
        dataclasses.replace(each, curve=[point for point in each.curve if point.round in rounds]) for each in made.outcomes
    ]
    return dataclasses.replace(made, outcomes=[judged_alike(each, every) for each in outcomes])


def test_lines_join_what_all_arms_were_judged_at_and_nothing_else():
    every_round = judged_at(arm("DevFT", [2.0, 3.0]), {0, 1, 2, 3, 4}, 2)
    joined, single = mean_curve(every_round, "round", joined=True)
    assert ([x for x, _ in joined.points], joined.joined) == ([0, 2, 4], True)
    assert ([x for x, _ in single.points], single.joined) == ([1, 3], False)
    # A run of an older folder that was judged at its ends alone.
    ends = judged_at(arm("FedIT", [2.0, 3.0]), {0, 4}, 2)
    [alone] = mean_curve(ends, "round", joined=True)
    assert ([x for x, _ in alone.points], alone.joined) == ([0, 4], False)
    made = comparison(ends, every_round, target=3.6)
    made = dataclasses.replace(made, common={**made.common, "evaluate_every": 2})
    assert unlike(made) == ["FedIT"]
    assert "every 2 rounds in all arms but FedIT, judged at the ends of stages alone" in " ".join(fairness(made))
    html = comparison_html(made)
    titles = {}
    for svg in check_page(html).findall(".//{*}svg[@aria-label]"):
        if "of the full model against" in svg.get("aria-label"):
            titles[svg.get("aria-label").split("against ")[1]] = len(svg.findall(".//{*}polyline"))
    assert titles == {
        "rounds, equal rounds": 1,
        "sent up by all clients, equal rounds": 0,
        "training work, equal rounds": 0,
        "training time, equal rounds": 0,
    }
    assert "(FedIT not at these)" in text_of(html)


def test_a_target_is_reached_where_all_arms_were_judged_or_at_a_runs_end():
    grown = judged_at(arm("DevFT", [2.0]), {0, 1, 2, 3, 4}, 2)
    [outcome] = grown.outcomes
    # From 5 to 2 in four steps: 2.75 after three, which FedIT was not judged at.
    assert reached(outcome, 2.75).round == 4
    assert reached(outcome, 3.5).round == 2
    [ends] = judged_at(arm("FedIT", [2.0]), {0, 3, 4}, 2).outcomes
    assert reached(ends, 2.75).round == 3


def test_the_page_shows_verdict_tables_pictures_and_runs():
    made = comparison(
        arm("FedIT", [2.0, 3.0]), arm("<DevFT> & more", [2.5, 3.6], sent=500), arm("local", [4.0, 4.1], sent=0), target=2.5
    )
    html = comparison_html(made)
    tree = check_page(html)
    words = text_of(html)
    for sentence in (*verdict(made), *fairness(made), "<DevFT> & more", "The command devft compare"):
        assert sentence in words
    assert len(tree.findall(".//{*}path[@class='aside front']")) == 2
    titles = {title.text for title in tree.findall(".//{*}svg//{*}title")}
    assert {"FedIT", "<DevFT> & more", "local"} <= titles
    assert "What sends nothing is a dotted level over bytes: local." in words
    assert "prefers-color-scheme: dark" in html


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", " =1", "\uff1d1"])
def test_no_name_is_a_formula_and_numbers_stay(name):
    made = comparison(arm(name, [1.5]), arm("b", [2.0]))
    [first, _] = csv.DictReader(io.StringIO(_csv(arm_rows(made))))
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


def test_a_difference_says_of_what_wherever_a_table_is_cut():
    made = comparison(arm("a", [2.0, 3.0]), arm("b", [2.5, 3.7]))
    header = learned_table(made, made.budgets[0]).header
    assert [name for name in header if "difference" in name] == ["difference in loss", "difference in exact match"]


def test_wide_tables_of_the_page_go_on_in_further_tables():
    made = comparison(*(arm(f"arm {index}", [2.0 + index, 3.1]) for index in range(3)), target=2.5)
    widths = [len(row) for row in column_parts([["name", *["x" * 30] * 6]], 118)]
    assert widths == [3, 3]
    noisy = [dataclasses.replace(each, outcomes=[*each.outcomes]) for each in made.budgets[0].arms]
    for each in noisy:
        for number, outcome in enumerate(each.outcomes):
            outcome.summary["seconds"]["train"] = outcome.summary["train_flops"] = outcome.summary["bytes_up"] = 10.0**number
            outcome.summary["peak_memory_bytes"] = outcome.summary["bytes_down"] = 7.0 * 10**number
    assert "What it cost, continued" in text_of(comparison_html(made))
