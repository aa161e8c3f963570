import pytest

from devft_jax.reporting.units import BYTES, FLOPS, SECONDS, readable, readable_ratio, unit_for, with_error


@pytest.mark.parametrize(
    ("value", "units", "text"),
    [
        (0, BYTES, "0 B"),
        (999, BYTES, "999 B"),
        (1_000, BYTES, "1.00 kB"),
        (12_345_678, BYTES, "12.3 MB"),
        (5e15, BYTES, "5,000 TB"),
        (0.25, SECONDS, "0.25 s"),
        (89, SECONDS, "89.0 s"),
        (90, SECONDS, "1.50 min"),
        (9_000, SECONDS, "2.50 h"),
        (664e9, FLOPS, "664 GFLOPs"),
    ],
)
def test_figures_have_three_digits_and_a_unit_that_suits_them(value, units, text):
    assert readable(value, units) == text


def test_ratios_say_which_way():
    assert readable_ratio(1, 8) == "8\u00d7 less"
    assert readable_ratio(3, 2) == "1.5\u00d7 more"
    assert readable_ratio(2, 2) == "the same"
    assert readable_ratio(0, 2) == ""


def test_an_axis_takes_the_largest_unit_of_which_it_has_one():
    assert unit_for(59, SECONDS) == (1.0, "s")
    assert unit_for(3_600, SECONDS) == (3600.0, "h")
    assert unit_for(0, BYTES) == (1.0, "B")


def test_scores_have_four_digits_and_their_error():
    assert with_error(0.41234, 0.011) == "0.4123 \u00b1 0.0110"
    assert with_error(0.41234, None, sign=True) == "+0.4123"
