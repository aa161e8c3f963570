"""Prefetched items come in order, no more of them than asked for, and the thread ends with the block."""

import itertools
import threading
import time
import traceback

import pytest

from devft_jax.runtime.prefetch import prefetch


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "devft-prefetch"]


def test_items_come_in_order_and_the_thread_ends():
    with prefetch(iter(range(50)), 2) as items:
        assert list(items) == list(range(50))
    assert not threads()


def test_no_more_items_wait_than_asked_for():
    made = []

    def numbers():
        for number in itertools.count():
            made.append(number)
            yield number

    with prefetch(numbers(), 2) as items:
        taken = next(items)
        time.sleep(0.2)
        # One is taken, two wait, and one has been computed and finds no room.
        assert taken == 0
        assert len(made) <= 4
    assert not threads()


def test_an_error_of_the_thread_is_raised_where_its_item_is_due():
    def two_then_broken():
        yield from (1, 2)
        raise ValueError("no third")

    taken = []
    with pytest.raises(ValueError, match="no third") as caught, prefetch(two_then_broken(), 2) as items:
        taken.extend(items)
    assert taken == [1, 2]
    assert "two_then_broken" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert not threads()


def test_a_block_that_fails_ends_the_thread():
    def interrupted(number):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), prefetch(itertools.count(), 2) as items:
        interrupted(next(items))
    assert not threads()
