"""Which texts are generated together, and what of their prompts is read once."""

import numpy as np

from devft_jax.harness.text_batches import batches
from devft_jax.harness.texts import TextRequest, text_options

OPTIONS = text_options({"max_gen_toks": 8}, batch=4)


def some(*prompts):
    return [TextRequest(np.array(prompt, np.int32), OPTIONS) for prompt in prompts]


def beginning(seed, length):
    return np.random.default_rng(seed).integers(1, 1000, length).tolist()


def batched(requests, missing=None):
    """(numbers, shared tokens) of each batch, and that each missing request is in one, behind what it begins with."""
    missing = range(len(requests)) if missing is None else missing
    found = list(batches(requests, list(missing)))
    assert sorted(number for batch in found for number in batch.numbers) == sorted(missing)
    for batch in found:
        size = len(batch.shared)
        for number in batch.numbers:
            assert len(requests[number].tokens) > size
            np.testing.assert_array_equal(requests[number].tokens[:size], batch.shared)
    return [(batch.numbers, len(batch.shared)) for batch in found]


def test_batches_are_of_equal_options_and_hold_every_request_once():
    longer = text_options({"max_gen_toks": 9}, batch=4)
    requests = [TextRequest(np.arange(size, dtype=np.int32), OPTIONS if size % 2 else longer) for size in range(1, 20)]
    found = batched(requests)
    assert all(len({requests[number].options for number in numbers}) == 1 for numbers, _ in found)
    assert max(len(numbers) for numbers, _ in found) == 4
    sizes = [len(requests[number].tokens) for numbers, _ in found[:3] for number in numbers]
    assert sizes == sorted(sizes, reverse=True)
    assert {shared for _, shared in found} == {0}


def test_a_beginning_of_all_prompts_is_read_once():
    start = beginning(0, 100)
    assert batched(some([*start, 1, 5, 6], [*start, 2], [*start, 3, 4])) == [([0, 2, 1], 100)]
    assert batched(some([*start, 1])) == [([0], 0)]
    # Too short to be worth a pass.
    assert batched(some([*start[:63], 1], [*start[:63], 2])) == [([0, 1], 0)]


def test_one_token_of_each_prompt_is_left():
    start = beginning(0, 100)
    assert batched(some(start, start, [*start, 5])) == [([2, 0, 1], 99)]


def test_tasks_with_examples_of_their_own_behind_a_system_prompt():
    system = beginning(0, 80)
    tasks = [[*system, *beginning(seed, 300)] for seed in (1, 2)]
    requests = some(*([*tasks[number % 2], number, 7] for number in range(8)))
    assert sorted(batched(requests)) == [([0, 2, 4, 6], 380), ([1, 3, 5, 7], 380)]
    # One of each kind: nothing but the system prompt is in common.
    assert batched(requests[:2]) == [([0, 1], 80)]


def test_small_remainders_are_put_together():
    """Five prompts of each of two tasks in batches of four: three batches, and not four."""
    tasks = [beginning(seed, 100) for seed in (1, 2)]
    found = batched(some(*([*tasks[number % 2], number] for number in range(10))))
    assert [(len(numbers), shared) for numbers, shared in found] == [(4, 100), (4, 100), (2, 0)]
    # Left over by one task alone, they share its examples.
    found = batched(some(*([*tasks[0], number] for number in range(5))))
    assert [(len(numbers), shared) for numbers, shared in found] == [(4, 100), (1, 100)]


def test_a_resumed_evaluation_shares_what_the_whole_one_does():
    start = beginning(0, 200)
    # Those that are missing share more than all.
    requests = some(*([*start[: 200 if number > 4 else 150], number, 3] for number in range(8)))
    assert {shared for _, shared in batched(requests)} == {150}
    assert batched(requests, [6, 7]) == [([6, 7], 150)]
    assert batched(requests, [2]) == [([2], 150)]
    assert batched(requests, []) == []
