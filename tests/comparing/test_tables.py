"""The tables of a comparison of given figures."""

import math

from devft_jax.comparing.formats import table_lines, to_plain, to_text
from devft_jax.comparing.measures import reached
from devft_jax.comparing.tables import learned_table, target_table
from devft_jax.comparing.verdict import fairness
from devft_jax.reporting.names import shortened
from devft_jax.storage.result_records import PersonalRecord
from tests.comparing.comparisons import arm, comparison

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
    assert "as given" in target_table(asked, asked.budgets[0]).title


def test_means_over_own_models_are_named():
    spread = PersonalRecord(
        loss=1.5, accuracy=0.15, losses=[1.0, 2.0], accuracies=[0.1, 0.2], loss_spread=0.5, accuracy_spread=0.05
    )
    alone = arm("alone", [3.0, 3.0], personal_models=True, personal=spread)
    both = arm("both", [2.0, 2.0], personal=spread)
    made = comparison(arm("FedIT", [2.0, 3.0]), alone, both)
    assert any("Every client has its own model in alone" in sentence for sentence in fairness(made))
    assert to_plain(made)["budgets"][0]["arms"][1]["judged"] == "mean over clients' own models"
    # The own models beside a global one are a column, which is left out where no arm has them.
    assert cells(learned_table(made, made.budgets[0]), "both")["clients' own models"] == "1.500"
    assert cells(learned_table(made, made.budgets[0]), "alone")["clients' own models"] == ""
    assert "In both figures are those of the one global model" in " ".join(fairness(made))
    plain = comparison(arm("FedIT", [2.0, 3.0]))
    assert "clients' own models" not in learned_table(plain, plain.budgets[0]).header


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
    assert "The rate of edge is at an end of these rates" in text.replace("\n  ", " ")


def test_wide_tables_go_on_beneath_with_their_names():
    made = comparison(arm("a" * 60, [2.0, 3.0]), arm("b", [2.5, 3.7], seconds=123456.0))
    lines = table_lines(learned_table(made, made.budgets[0]), width=80)
    assert max(map(len, lines[:-1])) <= 80
    assert len([line for line in lines if line.startswith("b ")]) == 4
    assert len(shortened("a" * 60, 40)) == 40
    assert shortened("x" * 30 + "y" * 30, 40) == "x" * 20 + ELLIPSIS + "y" * 19
    assert shortened("short", 40) == "short"


def test_a_difference_says_of_what_wherever_a_table_is_cut():
    made = comparison(arm("a", [2.0, 3.0]), arm("b", [2.5, 3.7]))
    header = learned_table(made, made.budgets[0]).header
    assert [name for name in header if "difference" in name] == ["difference in loss", "difference in exact match"]
