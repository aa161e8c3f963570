"""Laws of drawing, exact mask boundaries, and evaluation that sees every example once."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.data.batches import (
    bucket_for,
    draw_examples,
    evaluation_batches,
    fitted_lengths,
    gather_batch,
    length_buckets,
)
from devft_jax.data.tokens import tokenize

index_sets = st.lists(st.integers(0, 10**6), min_size=1, max_size=60, unique=True)
places = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "round": st.integers(0, 10**4),
        "client_id": st.integers(0, 2**32 - 1),
    }
)


@settings(max_examples=100, deadline=None)
@given(index_sets, places, st.integers(1, 8), st.integers(1, 8))
def test_a_draw_goes_through_all_examples_before_any_comes_again(indices, place, steps, batch):
    indices = np.sort(np.array(indices))
    drawn = draw_examples(indices, **place, steps=steps, batch_size=batch)
    assert drawn.shape == (steps, batch)
    assert drawn.dtype == np.int64
    for start in range(0, steps * batch, len(indices)):
        epoch = drawn.ravel()[start : start + len(indices)]
        assert len(set(epoch)) == len(epoch)
        assert set(epoch) <= set(indices)


@settings(max_examples=50, deadline=None)
@given(index_sets, places, st.integers(1, 8), st.integers(1, 8))
def test_a_draw_repeats_and_its_beginning_does_not_depend_on_its_length(indices, place, steps, batch):
    indices = np.array(indices)
    short = draw_examples(indices, **place, steps=steps, batch_size=batch)
    longer = draw_examples(indices, **place, steps=3 * steps, batch_size=batch)
    np.testing.assert_array_equal(short, longer[:steps])


def test_seed_round_and_client_each_change_the_draw():
    indices = np.arange(1000)
    base = {"seed": 3, "round": 4, "client_id": 5}
    draws = [
        draw_examples(indices, **base | change, steps=2, batch_size=8)
        for change in ({}, {"seed": 4}, {"round": 5}, {"client_id": 6}, {"seed": 4, "round": 3})
    ]
    assert len({draw.tobytes() for draw in draws}) == len(draws)


def test_a_second_epoch_is_shuffled_afresh():
    drawn = draw_examples(np.arange(50), seed=0, round=0, client_id=0, steps=2, batch_size=50)
    assert sorted(drawn[0]) == sorted(drawn[1]) == list(range(50))
    assert drawn[0].tolist() != drawn[1].tolist()


def test_every_example_is_as_likely():
    counts = np.zeros(20)
    for round in range(1000):
        drawn = draw_examples(np.arange(20), seed=1, round=round, client_id=7, steps=1, batch_size=5)
        counts[drawn.ravel()] += 1
    # Binomial(1000, 1/4): standard deviation 13.7.
    assert np.abs(counts - 250).max() < 5 * 13.7


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 200))
def test_buckets_ascend_in_eights_and_hold_every_length(max_length, smallest):
    buckets = length_buckets(max_length, smallest=smallest)
    assert list(buckets) == sorted(set(buckets))
    assert all(bucket % 8 == 0 for bucket in buckets)
    assert 0 <= buckets[-1] - max_length < 8
    assert len(buckets) <= 2 + max(0, np.log2(max_length / smallest))
    for length in {1, max_length, *(bucket for bucket in buckets if bucket <= max_length)}:
        found = bucket_for(length, buckets)
        assert found == min(bucket for bucket in buckets if bucket >= length)


def test_usual_buckets():
    assert length_buckets(512) == (32, 64, 128, 256, 512)
    assert length_buckets(500, smallest=100) == (104, 208, 416, 504)
    assert length_buckets(20) == (24,)
    with pytest.raises(ValueError, match="an example of 513 tokens exceeds the longest bucket, 512"):
        bucket_for(513, length_buckets(512))


@pytest.fixture(scope="session")
def examples(word_tokenizer, make_record):
    records = [make_record(n % 11, (5 * n) % 13, n) for n in range(45)]
    return tokenize(records, word_tokenizer(), template="completion", max_length=20)


def padded_by_hand(examples, n, length, pad_id):
    tokens, mask = [pad_id] * length, [False] * length
    if n >= 0:
        row = examples.row(n).tolist()
        tokens[: len(row)] = row
        for position in range(examples.prompt_lengths[n], len(row)):
            mask[position] = True
    return tokens, mask


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([(4,), (2, 3), (2, 1, 5), (0,)]), st.integers(0, 10**6), st.sampled_from([0, 7]))
def test_gathered_rows_are_those_padded_by_hand(examples, shape, seed, pad_id):
    index = np.random.default_rng(seed).integers(-1, len(examples), shape)
    tokens, mask = gather_batch(examples, index, 24, pad_id)
    assert tokens.shape == mask.shape == (*shape, 24)
    assert tokens.dtype == np.int32
    assert mask.dtype == bool
    for place in np.ndindex(shape):
        expected_tokens, expected_mask = padded_by_hand(examples, index[place], 24, pad_id)
        assert tokens[place].tolist() == expected_tokens
        assert mask[place].tolist() == expected_mask


def test_the_mask_covers_completion_and_eos_exactly(word_tokenizer, make_record):
    one = tokenize([make_record(2, 3)], word_tokenizer(), template="completion")
    tokens, mask = gather_batch(one, np.array([0, -1]), 8)
    assert tokens[0][mask[0]].tolist() == [29, 30, 31, 2]
    assert mask.astype(int).tolist() == [[0, 0, 0, 1, 1, 1, 1, 0], [0] * 8]


def test_a_first_token_that_nothing_predicts_is_not_scored(word_tokenizer, make_record):
    one = tokenize([make_record(0, 2)], word_tokenizer(bos=False), template="completion")
    assert one.prompt_lengths.tolist() == [0]
    _, mask = gather_batch(one, np.array([0]), 8)
    assert mask.astype(int).tolist() == [[0, 1, 1, 0, 0, 0, 0, 0]]


def test_an_example_is_never_cut_silently(examples):
    longest = int(np.argmax(examples.lengths))
    with pytest.raises(ValueError, match="an example of 20 tokens does not fit into 16"):
        gather_batch(examples, np.array([0, longest]), 16)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60))
def test_evaluation_sees_every_example_once_in_few_shapes(examples, batch_size):
    buckets = length_buckets(20, smallest=8)
    seen, shapes = [], []
    batches = list(evaluation_batches(examples, batch_size, buckets, pad_id=5))
    for index, tokens, mask in batches:
        shapes.append(tokens.shape)
        seen.extend(index[index >= 0].tolist())
        again = gather_batch(examples, index, tokens.shape[1], 5)
        np.testing.assert_array_equal(tokens, again[0])
        np.testing.assert_array_equal(mask, again[1])
        assert tokens.shape[1] == bucket_for(examples.lengths[index[index >= 0]].max(), buckets)
    assert sorted(seen) == list(range(len(examples)))
    assert {shape[0] for shape in shapes} == {batch_size}
    assert [shape[1] for shape in shapes] == sorted(shape[1] for shape in shapes)
    assert all((index >= 0).all() for index, _, _ in batches[:-1])
    scored = sum(mask.sum() for _, _, mask in batches)
    assert scored == (examples.lengths - examples.prompt_lengths).sum()


def padded_tokens(lengths, fitted):
    return sum(next(bound for bound in fitted if bound >= length) for length in lengths)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(1, 4))
def test_no_other_lengths_lose_less(lengths, most):
    fitted = fitted_lengths(np.array(lengths), most, worth=0.0)
    assert list(fitted) == sorted(set(fitted))
    assert len(fitted) <= most
    assert all(length % 8 == 0 for length in fitted)
    steps = sorted({-(-length // 8) * 8 for length in lengths})
    others = [
        padded_tokens(lengths, (*choice, steps[-1]))
        for count in range(min(most, len(steps)))
        for choice in itertools.combinations(steps[:-1], count)
    ]
    assert padded_tokens(lengths, fitted) == min(others)


def test_a_length_that_saves_little_is_not_taken():
    # 8 for a tenth of the examples saves about 3 % of the tokens.
    lengths = np.array([24] * 90 + [16] * 10)
    assert fitted_lengths(lengths, 4) == (24,)
    assert fitted_lengths(lengths, 4, worth=0.01) == (16, 24)
    assert fitted_lengths(np.array([3, 500] * 10), 4) == (8, 504)
    # A second length saves 248 tokens an example.
    assert fitted_lengths(np.array([3, 500] * 10), 4, least=248) == (8, 504)
    assert fitted_lengths(np.array([3, 500] * 10), 4, least=249) == (504,)
