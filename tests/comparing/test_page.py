"""The page of a comparison of given figures."""

import dataclasses

from devft_jax.comparing.page import comparison_html, mean_curve
from devft_jax.comparing.tables import column_parts
from devft_jax.comparing.verdict import fairness, verdict
from tests.comparing.comparisons import arm, comparison, judged_at
from tests.reporting.test_report_file import check_page, text_of


def test_curves_are_means_at_the_rounds_that_all_seeds_have():
    made = arm("FedIT", [2.0, 3.0, None])
    [line] = mean_curve(made, lambda point: point.bytes_up, joined=True)
    assert line.points == [(250.0 * number, 5 - 2.5 * number / 4) for number in range(5)]
    assert line.intervals[0] is None
    low, high = line.intervals[-1]
    assert 0 < low < 2 < 3 < high
    # Against what differs between arms at the same rounds, points stand alone.
    [alone] = mean_curve(made, lambda point: point.bytes_up, joined=False)
    assert (alone.points, alone.joined, line.joined) == (line.points, False, True)


def test_lines_join_what_all_arms_were_judged_at_and_nothing_else():
    every_round = judged_at(arm("DevFT", [2.0, 3.0]), {0, 1, 2, 3, 4}, 2)
    joined, single = mean_curve(every_round, lambda point: point.round, joined=True)
    assert ([x for x, _ in joined.points], joined.joined) == ([0, 2, 4], True)
    assert ([x for x, _ in single.points], single.joined) == ([1, 3], False)
    # A run of an older folder that was judged at its ends alone.
    ends = judged_at(arm("FedIT", [2.0, 3.0]), {0, 4}, 2)
    [alone] = mean_curve(ends, lambda point: point.round, joined=True)
    assert ([x for x, _ in alone.points], alone.joined) == ([0, 4], False)
    made = comparison(ends, every_round, target=3.6)
    made = dataclasses.replace(made, common=dataclasses.replace(made.common, evaluate_every=2))
    assert made.judged_apart == ["FedIT"]
    assert "every 2 rounds in all arms but FedIT, evaluated only at the ends of stages" in " ".join(fairness(made))
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
    assert "An arm that sends nothing is a dotted level over bytes: local." in words
    assert "prefers-color-scheme: dark" in html


def test_wide_tables_of_the_page_go_on_in_further_tables():
    made = comparison(*(arm(f"arm {index}", [2.0 + index, 3.1]) for index in range(3)), target=2.5)
    widths = [len(row) for row in column_parts([["name", *["x" * 30] * 6]], 118)]
    assert widths == [3, 3]
    noisy = [dataclasses.replace(each, outcomes=[*each.outcomes]) for each in made.budgets[0].arms]
    for each in noisy:
        for number, outcome in enumerate(each.outcomes):
            record = outcome.record
            record.seconds.train = record.train_flops = record.bytes_up = 10.0**number
            record.peak_memory_bytes = record.bytes_down = 7.0 * 10**number
    assert "What it cost, continued" in text_of(comparison_html(made))
