"""The table of scores: which lines it has, and how figures are written."""

from devft_jax.benchmarking.table import shown_scores
from devft_jax.harness.results import Results, TaskScore


def score(task, value, **fields):
    usual = {"metric": "acc", "filter": "none", "standard_error": 0.1, "items": 2, "shots": 5, "version": "1"}
    return TaskScore(task=task, value=value, higher_is_better=True, **(usual | fields))


def results(first, second):
    items = {("a", "acc", "none"): {0: first, 1: second}, ("b", "acc", "none"): {0: first}}
    scores = [score("all", (first + second) / 2), score("a", first), score("b", second)]
    scores.append(score("c", 0.5, metric="exact_match", filter="get-answer", standard_error=None, shots=None))
    return Results(scores, items, {"all": ["a", "b"], "without_score": ["c"]})


def test_the_tasks_of_a_group_with_a_score_are_left_out():
    lines = shown_scores({"one": results(1.0, 0.0)})
    assert [line.split()[0] for line in lines[:3]] == ["task", "all", "c"]
    assert lines[1].split() == ["all", "acc", "5", "2", "0.5000", "±", "0.1000"]
    assert lines[2].split() == ["c", "exact_match", "(get-answer)", "2", "0.5000"]


def test_others_are_compared_with_the_first():
    lines = shown_scores({"one": results(1.0, 0.0), "two": results(1.0, 1.0)})
    assert "+0.3333 ± 0.3333" in lines[1]
    assert lines[-2:] == ["[1] one", "[2] two"]
