import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.data import DataOptions, topics, validate_data
from devft_jax.data.topics import find_topics
from devft_jax.errors import InputError

SUBJECTS = (
    ("garden", "flowers", "roses", "bloom", "soil", "sunshine", "seeds"),
    ("numbers", "addition", "multiply", "integer", "equation", "digits", "result"),
    ("ocean", "waves", "ships", "sailors", "harbour", "storms", "fishing"),
)


def corpus(count, seed=0):
    """Texts of five words each, and their subjects; the first subject has most texts."""
    stream = np.random.default_rng(seed)
    subjects = stream.choice(3, count, p=[0.5, 0.3, 0.2])
    return [" ".join(stream.choice(SUBJECTS[subject], 5, replace=False)) for subject in subjects], subjects


def test_topics_are_the_subjects_by_size_and_named_by_their_words():
    texts, subjects = corpus(300)
    groups = find_topics(texts, 3)
    np.testing.assert_array_equal(groups.codes, subjects)
    for name, words in zip(groups.names, SUBJECTS, strict=True):
        assert len(name.split("/")) == 3
        assert set(name.split("/")) <= set(words)


@settings(max_examples=10)
@given(st.randoms(), st.lists(st.integers(0, 79), max_size=40))
def test_neither_order_nor_repetition_of_texts_changes_a_topic(random, repeated):
    texts, _ = corpus(80, seed=1)
    groups = find_topics(texts, 5)
    order = random.sample([*range(80), *repeated], 80 + len(repeated))
    again = find_topics([texts[index] for index in order], 5)
    assert set(again.names) == set(groups.names)
    for index, code in zip(order, again.codes, strict=True):
        assert again.names[code] == groups.names[groups.codes[index]]


def test_of_many_texts_a_sample_is_fitted_and_all_are_sorted(monkeypatch):
    texts, subjects = corpus(500)
    monkeypatch.setattr(topics, "_FITTED", 60)
    monkeypatch.setattr(topics, "_TEXTS_PER_BLOCK", 7)
    groups = find_topics(texts, 3)
    np.testing.assert_array_equal(groups.codes, subjects)
    np.testing.assert_array_equal(find_topics(texts[::-1], 3).codes, subjects[::-1])
    assert len(topics._sample(texts)) == 60


def test_names_are_distinct():
    assert topics._distinct(["a/b", "c", "a/b", "a/b"]) == ("a/b", "c", "a/b (2)", "a/b (3)")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["one text", "another text"] * 9, "'topic' cannot make 4 topics of 2 distinct texts; lower partition_groups"),
        ([f"{number} + {number}" for number in range(9)], "'topic' finds no word that distinguishes the 9 distinct texts"),
        ([f"{word} {n}" for word in ("apple", "banana") for n in range(9)], "only 2 of 4 topics .* 18 distinct texts"),
    ],
)
def test_texts_without_so_many_topics_are_refused(texts, message):
    with pytest.raises(InputError, match=message) as caught:
        find_topics(texts, 4)
    assert "\n" not in str(caught.value)


def test_the_missing_extra_is_named_before_anything_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    validate_data(DataOptions())
    with pytest.raises(InputError, match="pip install scikit-learn"):
        validate_data(DataOptions(partition="topic"))
