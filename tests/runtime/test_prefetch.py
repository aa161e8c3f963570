"""What is made ahead comes in order, no further ahead than asked for, and ends with its taker."""

import itertools
import threading
import time
import traceback

import pytest

from devft_jax.runtime.prefetch import made_ahead


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "devft-ahead"]


def test_items_come_in_order_and_the_thread_ends():
    with made_ahead(iter(range(50)), 2) as items:
        assert list(items) == list(range(50))
    assert not threads()


def test_nothing_is_made_further_ahead_than_asked_for():
    made = []

    def numbers():
        for number in itertools.count():
            made.append(number)
            yield number

    with made_ahead(numbers(), 2) as items:
        taken = next(items)
        time.sleep(0.2)
        # One is taken, two wait, and one is made that finds no room.
        assert taken == 0
        assert len(made) <= 4
    assert not threads()


def test_what_the_thread_runs_into_is_raised_where_its_item_is_due():
    def two_then_broken():
        yield from (1, 2)
        raise ValueError("no third")

    taken = []
    with pytest.raises(ValueError, match="no third") as caught, made_ahead(two_then_broken(), 2) as items:
        taken.extend(items)
    assert taken == [1, 2]
    assert "two_then_broken" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert not threads()


def test_a_taker_that_gives_up_ends_the_thread():
    def interrupted(number):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), made_ahead(itertools.count(), 2) as items:
        interrupted(next(items))
    assert not threads()
