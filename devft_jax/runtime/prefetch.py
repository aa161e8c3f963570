"""Work done ahead on a background thread, so that the device need not wait for the host."""

import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Failed:
    """What the thread ran into."""

    error: BaseException


class _Ended:
    """Nothing is left."""


@contextlib.contextmanager
def made_ahead(items: Iterator[Item], ahead: int) -> Iterator[Iterator[Item]]:
    """The same items in the same order, made on a thread that is at most `ahead` of them ahead.

    What the thread runs into is raised where the item would have been taken, with its own traceback. The thread ends with
    the block, however that ends, once the item that it is making is made; it does not keep the process alive.
    """
    made: queue.Queue[Any] = queue.Queue(maxsize=ahead)
    over = threading.Event()

    def hand_over(item: Any) -> bool:
        while not over.is_set():
            with contextlib.suppress(queue.Full):
                made.put(item, timeout=0.05)
                return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not hand_over(item):
                    return
            hand_over(_Ended())
        except BaseException as error:  # every kind is raised on the other side
            hand_over(_Failed(error))

    def taken() -> Iterator[Item]:
        while not isinstance(item := made.get(), _Ended):
            if isinstance(item, _Failed):
                raise item.error
            yield item

    thread = threading.Thread(target=work, name="devft-ahead", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        over.set()
        thread.join()
