"""Prefetching: a background thread computes the next items, so that the device does not wait for the host."""

import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Failed:
    """The error that ended the thread."""

    error: BaseException


class _Ended:
    """There are no more items."""


@contextlib.contextmanager
def prefetch(items: Iterator[Item], ahead: int) -> Iterator[Iterator[Item]]:
    """The same items in the same order, computed on a background thread.

    An error of the thread is raised when its item would have been taken, with the thread's traceback. The thread ends with
    the block, also if the block fails, after the item that it is computing; it does not keep the process alive.

    Args:
      items: computes the items; used only by the thread.
      ahead: how many items may wait to be taken.

    Yields:
      An iterator over the items.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=ahead)
    closed = threading.Event()

    def put(item: Any) -> bool:
        """Add an item when there is room; False if the block has ended."""
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.05)
                return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_Ended())
        except BaseException as error:  # raised again by the thread that takes the items
            put(_Failed(error))

    def taken() -> Iterator[Item]:
        while not isinstance(item := ready.get(), _Ended):
            if isinstance(item, _Failed):
                raise item.error
            yield item

    thread = threading.Thread(target=work, name="devft-prefetch", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        closed.set()
        thread.join()
