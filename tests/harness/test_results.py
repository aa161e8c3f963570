"""Scores out of what the harness returns, and differences between models over the same items."""

import json

import numpy as np
import pytest

from devft_jax.harness.results import Results, paired_difference


def sample(number, **values):
    return {"doc_id": number, "filter": "none", "metrics": list(values)} | values


def found(hits):
    """As `lm_eval.evaluate` returns it: two tasks in a group, one of them with a metric that is a list."""
    return {
        "results": {
            "both": {"alias": "both", "acc,none": 0.5, "acc_stderr,none": 0.25, "sample_count": {"acc,none": 3}},
            "one": {"alias": "one", "sample_len": 2, "acc,none": 0.5, "acc_stderr,none": 0.5},
            "two": {"alias": "two", "sample_len": 1, "acc,none": 1.0, "acc_stderr,none": "N/A", "each,none": 0.5},
        },
        "n-shot": {"one": 5, "two": 0},
        "versions": {"one": 1.0, "two": 2.0, "both": 2},
        "higher_is_better": {"one": {"acc": True}, "two": {"acc": True}},
        "group_subtasks": {"both": ["one", "inner"], "inner": ["two"]},
        "samples": {
            "one": [sample(0, acc=hits[0]), sample(1, acc=hits[1])],
            "two": [sample(0, acc=hits[2], each=[True, False])],
        },
    }


def test_every_metric_of_every_task_is_a_score():
    results = Results.of(found([1.0, 0.0, 1.0]))
    by_name = {(score.task, score.metric): score for score in results.scores}
    assert set(by_name) == {("both", "acc"), ("one", "acc"), ("two", "acc"), ("two", "each")}
    one = by_name["one", "acc"]
    assert (one.value, one.standard_error, one.items, one.shots) == (0.5, 0.5, 2, 5)
    assert (one.version, one.higher_is_better) == ("1.0", True)
    assert by_name["two", "acc"].standard_error is None
    assert by_name["both", "acc"].items == 3
    assert results.values_of("two", "each") == {("two", 0): 0.5}
    assert results.values_of("both", "acc") == {("one", 0): 1.0, ("one", 1): 0.0, ("two", 0): 1.0}
    assert Results.from_plain(json.loads(json.dumps(results.to_plain()))) == results


def test_differences_are_over_the_items_that_both_have():
    before, after = Results.of(found([1.0, 0.0, 0.0])), Results.of(found([1.0, 1.0, 0.0]))
    difference = paired_difference(before, after, "both", "acc")
    assert difference.items == 3
    assert difference.mean == pytest.approx(1 / 3)
    assert difference.standard_error == pytest.approx(np.std([0, 1, 0], ddof=1) / 3**0.5)
    assert paired_difference(before, after, "two", "each").standard_error is None
    assert paired_difference(before, after, "two", "f1") is None
