"""Examples from token ids that are at hand."""

import numpy as np
import pytest

from devft_jax.data import Examples, gather_batch

ROWS = np.array([[5, 6, 7, 8], [9, 10, 0, 0]])


def test_rows_come_back_without_their_padding_and_answers_begin_after_the_prompts():
    examples = Examples.of_rows(ROWS, lengths=np.array([4, 2]), prompt_lengths=np.array([2, 1]))
    assert [examples.row(n).tolist() for n in range(2)] == [[5, 6, 7, 8], [9, 10]]
    tokens, answers = gather_batch(examples, np.array([1, 0]), 4)
    assert tokens.tolist() == [[9, 10, 0, 0], [5, 6, 7, 8]]
    assert answers.tolist() == [[False, True, False, False], [False, False, True, True]]


def test_by_default_every_token_counts_and_all_but_the_first_are_learned():
    examples = Examples.of_rows(ROWS)
    assert examples.lengths.tolist() == [4, 4]
    assert examples.is_answer.tolist() == [False, True, True, True] * 2
    assert (len(examples), examples.tokens.dtype, examples.truncated.any()) == (2, np.int32, False)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"lengths": np.array([4, 5])}, "lengths"),
        ({"lengths": np.array([4, 0])}, "lengths"),
        ({"lengths": np.array([4])}, "lengths"),
        ({"lengths": np.array([4, 2]), "prompt_lengths": np.array([1, 3])}, "prompt_lengths"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(given, named):
    with pytest.raises(ValueError, match=f"^{named} do not fit: give each of the 2 rows"):
        Examples.of_rows(ROWS, **given)
