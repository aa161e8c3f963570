"""Names that are cut to fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.reporting.names import distinct, shortened


@pytest.mark.parametrize(
    ("names", "width", "expected"),
    [
        (["local_training_0.json", "local_training_7.json"], 9, ["\u20260", "\u20267"]),
        (["local_training_0.json", "local_training_10.json"], 9, ["\u20260", "\u202610"]),
        (["client_100.json", "client_101.json"], 9, ["\u2026100", "\u2026101"]),
        (["short", "names"], 9, ["short", "names"]),
        (["a-very-long-name"], 9, ["a-ve\u2026name"]),
        (["alpha-centauri", "beta"], 9, ["alph\u2026auri", "beta"]),
    ],
)
def test_names_that_do_not_fit_keep_what_tells_them_apart(names, width, expected):
    assert distinct(names, width) == expected


@given(st.lists(st.text(max_size=30), min_size=1, max_size=8, unique=True), st.integers(2, 12))
def test_every_name_fits(names, width):
    shown = distinct(names, width)
    assert len(shown) == len(names)
    assert all(len(name) <= width for name in shown)
    assert all(len(shortened(name, width)) <= width for name in names)
