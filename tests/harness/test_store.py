"""The file of finished requests: what it gives back, and what a killed process may leave in it."""

import numpy as np
import pytest

from devft_jax.errors import InputError, RunError
from devft_jax.harness.store import RequestStore, request_key

TOKENS = np.array([1, 2, 3], np.int32)


def test_answers_are_there_for_the_next_process(tmp_path):
    path = tmp_path / "evaluations" / "model.jsonl"
    store = RequestStore(path)
    store.add({"a": [-1.25, True], "b": "a text\nof two lines"})
    store.add({"c": [float("-inf"), False]})
    again = RequestStore(path)
    assert len(again) == 3
    assert (again["a"], again["b"], again["c"]) == ([-1.25, True], "a text\nof two lines", [float("-inf"), False])
    assert "d" not in again


@pytest.mark.parametrize("left", range(1, 30))
def test_a_line_that_was_being_written_is_asked_again(tmp_path, left):
    """Wherever a kill cuts the last line, the lines before it and after it are whole."""
    path = tmp_path / "model.jsonl"
    store = RequestStore(path)
    store.add({"a": 1})
    size = path.stat().st_size
    store.add({"b": "some longer text"})
    path.write_bytes(path.read_bytes()[: size + left])
    again = RequestStore(path)
    assert "a" in again
    assert "b" not in again
    again.add({"c": 3})
    last = RequestStore(path)
    assert (last["a"], last["c"], len(last)) == (1, 3, 2)


def test_keys_differ_with_all_that_an_answer_depends_on():
    keys = {
        request_key("log-likelihood", TOKENS, 1),
        request_key("log-likelihood", TOKENS, 2),
        request_key("log-likelihood", TOKENS[:2], 1),
        request_key("text", TOKENS, 1),
        request_key("text", TOKENS, {"stop": ["a"]}),
        request_key("text", TOKENS, {"stop": ["b"]}),
    }
    assert len(keys) == 6
    assert request_key("text", TOKENS, {"a": 1, "b": 2}) == request_key("text", TOKENS.astype(np.int64), {"b": 2, "a": 1})


def test_a_file_that_cannot_be_read_or_written_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"finished requests .* cannot be read"):
        RequestStore(tmp_path)
    store = RequestStore(tmp_path / "file" / "model.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written .* it resumes from there"):
        store.add({"a": 1})
