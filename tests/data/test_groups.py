from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.data.groups import category_groups, content_keys, length_groups
from devft_jax.data.tokens import tokenize
from devft_jax.errors import InputError


@given(st.lists(st.integers(1, 60), min_size=1, max_size=200), st.integers(2, 12), st.randoms())
def test_bins_are_ranges_of_lengths_in_order_none_empty_whatever_the_order(lengths, bins, random):
    lengths = np.array(lengths)
    if len(set(lengths.tolist())) == 1:
        with pytest.raises(InputError, match=f"in one bin of {lengths[0]} to {lengths[0]} tokens; raise partition_groups"):
            length_groups(lengths, bins)
        return
    try:
        groups = length_groups(lengths, bins)
    except InputError:
        # Most examples have the greatest length, which only finer bins tell from the rest.
        assert np.sum(lengths == lengths.max()) > len(lengths) / bins
        return
    counts = groups.count(np.arange(len(lengths)))
    assert 2 <= len(groups.names) <= bins
    assert (counts > 0).all()
    ranges = [(lengths[groups.codes == code].min(), lengths[groups.codes == code].max()) for code in range(len(counts))]
    assert all(before[1] < after[0] for before, after in pairwise(ranges))
    assert groups.names == tuple(f"{low}-{high}" if low < high else f"{low}" for low, high in ranges)
    order = random.sample(range(len(lengths)), len(lengths))
    np.testing.assert_array_equal(length_groups(lengths[order], bins).codes, groups.codes[order])


def test_bins_of_distinct_lengths_are_equally_filled():
    groups = length_groups(np.random.default_rng(0).permutation(100) + 1, 4)
    assert groups.names == ("1-25", "26-50", "51-75", "76-100")


def test_keys_tell_contents_apart_and_nothing_else(make_record, word_tokenizer):
    records = [
        make_record(3, 2, number=5),
        make_record(3, 2, number=6),
        make_record(3, 2, number=5, category="a"),
        make_record(3, 2, number=5, category="b"),
        make_record(3, 2, number=5),
    ]
    examples = tokenize(records, word_tokenizer(), template="completion")
    keys = content_keys(examples)
    assert keys.dtype == np.uint64
    assert len(set(keys.tolist())) == 4
    assert keys[0] == keys[4]
    order = np.array([3, 1, 0])
    np.testing.assert_array_equal(content_keys(examples.take(order)), keys[order])
    assert category_groups(examples).count(np.arange(5)).tolist() == [1, 1]
