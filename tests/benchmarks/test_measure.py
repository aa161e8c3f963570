"""The statistics of the benchmarks recover what made-up times were made from."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measure import fit_depth, line, median, paired_ratio

times = st.floats(1e-3, 1e3)


@given(st.lists(times, min_size=6, max_size=40))
def test_the_interval_covers_the_median_with_95_percent_and_no_narrower_one_does(values):
    found, count = median(values), len(values)
    ordered = sorted(values)
    assert found.low <= found.value <= found.high

    def coverage(rank):
        return 1 - 2 * sum(math.comb(count, below) for below in range(rank)) / 2**count

    rank = max(rank for rank in range(1, count // 2 + 1) if coverage(rank) >= 0.95)
    assert (found.low, found.high) == (ordered[rank - 1], ordered[count - rank])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_values_have_a_median_and_no_interval(count):
    found = median([3.0] * count)
    assert (found.value, found.low, found.high, found.count) == (3.0, None, None, count)


def test_nine_values_lose_one_at_each_end():
    found = median([float(value) for value in (9, 1, 8, 2, 7, 3, 6, 4, 5)])
    assert (found.value, found.low, found.high) == (5.0, 2.0, 8.0)


@given(st.lists(times, min_size=1, max_size=20), st.floats(0.1, 10))
def test_a_slow_spell_that_meets_both_programs_leaves_their_ratio(theirs, ratio):
    spells = [1 + index % 3 for index in range(len(theirs))]
    mine = [ratio * time * spell for time, spell in zip(theirs, spells, strict=True)]
    found = paired_ratio(mine, [time * spell for time, spell in zip(theirs, spells, strict=True)])
    assert found.value == pytest.approx(ratio)


@given(st.floats(-5, 5), st.floats(0.01, 5))
def test_points_on_a_line_give_the_line(c, k):
    depths = [2, 4, 8, 16]
    assert line(depths, [c + k * depth for depth in depths]) == (pytest.approx(c, abs=1e-9), pytest.approx(k))


def test_the_fit_takes_the_head_out_of_the_constant():
    # Per layer 0.5 s, the head 3 layers, 0.4 s of something else; two repetitions, one on a machine half as fast.
    seconds = {depth: [(0.4 + 0.5 * (3 + depth)) * slow for slow in (1, 2)] for depth in (2, 4, 8, 16)}
    fit = fit_depth(seconds, head_layers=3.0)
    assert fit.slope.mean == pytest.approx(0.75)
    assert fit.constant.mean == pytest.approx(1.9 * 1.5)
    assert fit.head.mean == pytest.approx(3 * 0.75)
    assert fit.share.mean == pytest.approx(0.4 / (0.4 + 0.5 * 19))
    assert fit.share.interval is None or fit.share.high - fit.share.low == pytest.approx(0.0, abs=1e-9)
    assert fit.residual == pytest.approx(0.0, abs=1e-9)


def test_noise_widens_the_interval_and_shows_as_deviation():
    rng = np.random.default_rng(0)
    seconds = {depth: ((1 + 0.2 * depth) * rng.normal(1, 0.05, 8)).tolist() for depth in (2, 4, 8, 16)}
    fit = fit_depth(seconds, head_layers=0.0)
    assert 0 < fit.share.high - fit.share.mean < 0.2
    assert fit.share.low < 1 / 4.2 < fit.share.high
    assert 0 < fit.residual < 0.1
