"""Token ids to the last one, what happens at the length limit, and a cache that changes nothing."""

import dataclasses
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.data import store, tokens
from devft_jax.data.examples import Examples
from devft_jax.data.tokens import tokenize
from devft_jax.errors import InputError

A, ZERO = 3, 29  # ids of the words "a" and "0"


def rows(examples):
    return [examples.row(n).tolist() for n in range(len(examples))]


def assert_same(first, second):
    for field in dataclasses.fields(Examples):
        left, right = (getattr(examples, field.name) for examples in (first, second))
        assert type(left) is type(right)
        assert np.asarray(left).dtype == np.asarray(right).dtype
        np.testing.assert_array_equal(left, right)


@pytest.fixture(scope="session")
def encode(word_tokenizer):
    def call(records, tokenizer=None, **options):
        return tokenize(records, tokenizer or word_tokenizer(), template="completion", **options)

    return call


def test_an_example_is_bos_prompt_completion_eos(encode, make_record):
    examples = encode([make_record(2, 3), make_record(1, 0, 5)])
    assert rows(examples) == [[1, A, A + 1, ZERO, ZERO + 1, ZERO + 2, 2], [1, A, 2]]
    assert examples.prompt_lengths.tolist() == [3, 2]
    assert examples.lengths.tolist() == [7, 3]
    assert examples.record_index.tolist() == [0, 1]
    assert not examples.truncated.any()
    assert examples.tokens.dtype == examples.prompt_lengths.dtype == np.int32
    assert examples.starts.dtype == examples.lengths.dtype == np.int64
    assert examples.is_answer.tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0, 1]


def test_prompt_and_completion_are_tokenised_apart(encode, make_record):
    record = dataclasses.replace(make_record(1, 1), instruction="1", output="2")
    assert rows(encode([record])) == [[1, ZERO + 1, ZERO + 2, 2]]


def test_without_a_bos_token_none_is_added(encode, word_tokenizer, make_record):
    examples = encode([make_record(1, 1)], word_tokenizer(bos=False))
    assert rows(examples) == [[A, ZERO, 2]]
    assert examples.prompt_lengths.tolist() == [1]


def test_without_an_eos_token_there_is_an_error(encode, word_tokenizer, make_record):
    with pytest.raises(InputError, match="has no eos token, so completions could not end; set eos"):
        encode([make_record(1, 1)], word_tokenizer(eos=False))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=8),
    st.integers(3, 16),
)
def test_the_length_limit(encode, make_record, sizes, max_length):
    records = [make_record(*size, number) for number, size in enumerate(sizes)]
    fitting = [number for number, (prompt, _) in enumerate(sizes) if prompt + 1 < max_length]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not fitting:
            with pytest.raises(InputError, match="or shorten the prompts"):
                encode(records, max_length=max_length)
            return
        examples = encode(records, max_length=max_length)
    assert sum("dropped" in str(warning.message) for warning in caught) == (len(fitting) < len(records))
    assert examples.record_index.tolist() == fitting
    for row, number, cut in zip(rows(examples), fitting, examples.truncated, strict=True):
        prompt, completion = sizes[number]
        whole = [1, *range(A, A + prompt), *range(ZERO + number, ZERO + number + completion), 2]
        assert row == whole[:max_length]
        assert cut == (len(whole) > max_length)
    assert (examples.prompt_lengths < examples.lengths).all()


def test_overlong_prompts_are_reported_once_or_refused(encode, make_record):
    records = [make_record(size, 2, number) for number, size in enumerate((3, 9, 4, 9))]
    sentence = r"2 of 4 prompts .* max_length 8, the first is toy\.json:2; "
    with pytest.warns(UserWarning, match=sentence + "they are dropped, raise max_length") as caught:
        encode(records, max_length=8)
    assert len(caught) == 1
    with pytest.raises(InputError, match=sentence + "raise max_length, or drop them with overlong"):
        encode(records, max_length=8, overlong="error")
    with pytest.raises(InputError, match="overlong 'cut' is unknown; choose from drop, error"):
        encode(records, overlong="cut")


def test_empty_answers_are_reported_once(encode, make_record):
    records = [make_record(1, size, number) for number, size in enumerate((1, 0, 2, 0))]
    with pytest.warns(UserWarning, match=r"2 of 4 records have an empty answer, .*; the first is toy\.json:2\.") as caught:
        assert len(encode(records)) == 4
    assert len(caught) == 1


def test_categories_are_named_in_order_and_none_has_no_code(encode, make_record):
    records = [make_record(1, 1, category=name) for name in ("b", None, "a", "b")]
    examples = encode(records)
    assert examples.category_names == ("a", "b")
    assert examples.category_codes.tolist() == [1, -1, 0, 1]


def test_a_category_stays_known_when_its_records_are_dropped(encode, make_record):
    records = [make_record(1, 1, 0, "kept"), make_record(9, 1, 1, "gone")]
    with pytest.warns(UserWarning, match="dropped"):
        examples = encode(records, max_length=6)
    assert examples.category_names == ("gone", "kept")
    assert examples.category_codes.tolist() == [1]


def test_many_records_are_as_few_at_a_time(encode, make_record, monkeypatch, tmp_path):
    records = [make_record(n % 5, n % 7, n, "xy"[n % 2]) for n in range(50)]
    whole = encode(records, cache_dir=tmp_path / "a")
    monkeypatch.setattr(tokens, "_RECORDS_PER_CALL", 7)
    assert_same(whole, encode(records, cache_dir=tmp_path / "b"))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 19), max_size=30))
def test_take_is_picking_rows(encode, make_record, index):
    records = [make_record(n % 5, n % 7, n, "xy"[n % 2]) for n in range(20)]
    examples = encode(records)
    taken = examples.take(np.array(index, np.int64))
    assert len(taken) == len(index)
    everything = rows(examples)
    if index:
        assert rows(taken) == [everything[n] for n in index]
    for name in ("prompt_lengths", "record_index", "category_codes", "truncated", "lengths"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(examples, name)[index])


def cache_files(folder):
    return sorted((folder / "tokens").iterdir())


class Untouchable:
    """Stands for a tokenizer that must not be called again."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, texts, **options):
        if texts != ["a"]:  # which tells what leads a text
            pytest.fail("the cache was not used")
        return self.tokenizer(texts, **options)


def test_a_cache_hit_equals_a_fresh_result_and_warns_alike(encode, word_tokenizer, make_record, tmp_path):
    records = [make_record(n % 9, 1 + n % 7, n, ("x", None, "y")[n % 3]) for n in range(30)]
    found = []
    for tokenizer in (word_tokenizer(), Untouchable(word_tokenizer())):
        with pytest.warns(UserWarning, match="dropped") as caught:
            found.append(encode(records, tokenizer, max_length=8, cache_dir=tmp_path))
        assert len(caught) == 1
    assert_same(*found)
    assert len(cache_files(tmp_path)) == 1
    with pytest.raises(InputError, match="leave no room"):
        encode(
            records,
            Untouchable(word_tokenizer()),
            max_length=8,
            cache_dir=tmp_path,
            overlong="error",
        )


def test_whatever_decides_the_ids_has_its_own_cache_file(word_tokenizer, make_record, tmp_path, monkeypatch):
    record = make_record(2, 3, category="x")
    cases = [
        ([record], word_tokenizer(), {}),
        ([record, record], word_tokenizer(), {}),
        ([dataclasses.replace(record, output="9")], word_tokenizer(), {}),
        ([dataclasses.replace(record, category="y")], word_tokenizer(), {}),
        ([record], word_tokenizer(bos=False), {}),
        ([record], word_tokenizer(words=("b", "a")), {}),
        ([record], word_tokenizer(), {"max_length": 100}),
        ([record], word_tokenizer(), {"template": "alpaca"}),
    ]
    for number, (records, tokenizer, options) in enumerate(cases, 1):
        tokenize(records, tokenizer, cache_dir=tmp_path, **{"template": "completion"} | options)
        assert len(cache_files(tmp_path)) == number
    monkeypatch.setattr(tokens, "_VERSION", -1)
    tokenize([record], word_tokenizer(), cache_dir=tmp_path, template="completion")
    assert len(cache_files(tmp_path)) == len(cases) + 1


def test_what_does_not_decide_the_ids_shares_a_cache_file(encode, word_tokenizer, make_record, tmp_path):
    record = make_record(2, 3)
    encode([record], cache_dir=tmp_path)
    padded = word_tokenizer(words=(*"abcdefghijklmnopqrstuvwxyz", *map(str, range(1000))))
    padded.backend_tokenizer.enable_truncation(5)
    encode([dataclasses.replace(record, origin="moved.json:7")], padded, cache_dir=tmp_path)
    assert len(cache_files(tmp_path)) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: bytes([content[0] ^ 1]) + content[1:],
        lambda content: content + b"\0",
    ],
    ids=["empty", "truncated", "overwritten", "lengthened"],
)
def test_a_damaged_cache_file_is_made_anew(encode, make_record, tmp_path, damage):
    records = [make_record(2, 3, n, "x") for n in range(10)]
    fresh = encode(records, cache_dir=tmp_path)
    [store] = cache_files(tmp_path)
    expected = {field.name: np.copy(getattr(fresh, field.name)) for field in dataclasses.fields(Examples)}
    for path in sorted(store.iterdir()):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(damage(content))
        for _ in range(2):
            again = encode(records, cache_dir=tmp_path)
            for name, array in expected.items():
                np.testing.assert_array_equal(getattr(again, name), array)
        assert path.read_bytes() == content
        assert cache_files(tmp_path) == [store]


def test_a_write_that_fails_leaves_nothing_and_costs_only_a_warning(encode, make_record, tmp_path, monkeypatch):
    append = store.StoreWriter.append

    def full_disk(writer, **parts):
        append(writer, **parts)
        if writer.path is not None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.StoreWriter, "append", full_disk)
    with pytest.warns(UserWarning, match=r"cannot be written \(No space left on device\), so the"):
        examples = encode([make_record(1, 1)], cache_dir=tmp_path)
    assert rows(examples) == [[1, A, ZERO, 2]]
    assert cache_files(tmp_path) == []


def test_the_default_folder_comes_from_the_environment(encode, make_record, tmp_path, monkeypatch):
    monkeypatch.setenv("DEVFT_CACHE", str(tmp_path))
    encode([make_record(1, 1)])
    assert len(cache_files(tmp_path)) == 1
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for named, folder in (("", "home/.cache/devft_jax"), ("~/x", "home/x")):
        monkeypatch.setenv("DEVFT_CACHE", named)
        encode([make_record(2, 1)])
        assert len(cache_files(tmp_path / folder)) == 1


def test_a_tokenizer_without_visible_content_is_not_cached(encode, word_tokenizer, make_record, tmp_path):
    class Slow:
        eos_token_id = 2

        def __call__(self, *arguments, **options):
            return word_tokenizer()(*arguments, **options)

    assert rows(encode([make_record(1, 1)], Slow(), cache_dir=tmp_path)) == [[1, A, ZERO, 2]]
    assert list(tmp_path.iterdir()) == []


def test_how_many_records_have_been_tokenised_is_noted(encode, make_record, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "_RECORDS_PER_CALL", 2)
    records = [make_record(1, index) for index in range(5)]
    noted = []
    for _ in range(2):
        encode(records, cache_dir=tmp_path, note=lambda done, total: noted.append((done, total)))
    # The second call finds them in the cache.
    assert noted == [(2, 5), (4, 5), (5, 5)]
