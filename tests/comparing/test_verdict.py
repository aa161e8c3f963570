"""What a comparison says of given figures, in sentences."""

import dataclasses

from devft_jax.comparing.formats import to_markdown, to_text
from devft_jax.comparing.measures import BYTES_UP, fronts
from devft_jax.comparing.page import comparison_html
from devft_jax.comparing.tables import learned_table
from devft_jax.comparing.verdict import fairness, verdict
from tests.comparing.comparisons import arm, comparison
from tests.reporting.test_report_file import check_page

PLUS_MINUS, ELLIPSIS = "\u00b1", "\u2026"


def test_one_seed_has_no_interval_and_says_so():
    made = comparison(arm("FedIT", [2.0]), arm("DevFT", [2.5]))
    found = learned_table(made, made.budgets[0])
    assert found.rows[2][5:7] == ["2.500", "+0.500"]
    assert "one seed has no interval" in found.below
    assert PLUS_MINUS not in to_text(made)
    sentences = verdict(made)
    assert sentences[0] == "At equal rounds, against FedIT at 2.000, held-out loss is higher with DevFT (+0.500)."
    assert sentences[-1] == "This is one seed, so nothing is known about the variation between seeds."


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
    assert second.startswith("At equal rounds the seeds show no difference in held-out loss between FedIT and unclear")
    assert best.endswith("with 50% of FedIT's bytes up and 100% of FedIT's FLOPs.")
    assert by_bytes == "On the Pareto front of mean loss and bytes sent up at equal rounds: better."
    assert "training work" in by_work
    assert others[0].startswith("At equal bytes")
    assert "over 3 seeds" in others[-1]
    assert "of 8 differences some may exclude zero by chance" in others[-1]


def test_what_holds_all_data_in_one_place_is_no_rival_in_bytes():
    made = comparison(arm("FedIT", [2.0, 3.0]), arm("central", [1.0, 2.0], sent=0, pools=True), arm("c", [3.0, 4.0]))
    assert fronts(made.budgets[0], BYTES_UP) == ["FedIT"]
    assert any("of the arms that do not pool data is that of FedIT" in sentence for sentence in verdict(made))


def test_without_a_result_of_the_reference_nothing_is_claimed():
    gone = comparison(arm("FedIT", [None, None]), arm("DevFT", [1.0, 2.0]))
    assert verdict(gone)[0] == "At equal rounds nothing can be compared with FedIT: its runs failed."
    blind = comparison(arm("FedIT", [None]), arm("DevFT", [None]))
    unknown = [arm(name, [3.0], judged=False) for name in ("FedIT", "DevFT")]
    assert "there is no held-out data" in verdict(comparison(*unknown))[0]
    for made in (gone, blind, comparison(*unknown)):
        check_page(comparison_html(made))
        assert to_text(made)
        assert to_markdown(made)


def test_what_is_not_equal_is_told():
    own = arm("own", [2.0], changes={"local_steps": 3, "learning_rate": [0.5]}, note="rank 2")
    short = arm("short", [2.0])
    short = dataclasses.replace(short, config=dataclasses.replace(short.config, rounds=2))
    made = comparison(arm("FedIT", [2.0]), own, short)
    said = " ".join(fairness(made))
    assert "Learning rates were given, not tuned here: FedIT 0.0001, own 0.5, short 0.0001." in said
    assert "own has options of its own: local_steps 3, learning_rate 0.5." in said
    assert "Its local_steps give own other numbers of examples in a round." in said
    assert "their own schedules over their rounds: short." in said
    assert "evaluated every round" in said
    assert "not all made with the same versions" not in said
    other = comparison(arm("FedIT", [2.0]), arm("new", [2.0], versions={"jax": "2"}))
    assert "not all made with the same versions" in " ".join(fairness(other))
