"""Stopping on request: Ctrl-C, SIGTERM (as of schedulers and containers) and SIGHUP (of a terminal that is gone).

While nothing would be lost, as while a model is loaded or a first program compiled, the first request stops at once. Later
what is under way, such as a round, is finished and saved; that is answered at once, by a thread of its own, because Python
hears of a signal only when the computation under way returns. A second Ctrl-C then stops without that.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

# A request may reach a process twice, as when its group is signalled too; what follows so soon is no second one.
_SAME_REQUEST = 0.5

_owned = threading.Event()


class Stopped(KeyboardInterrupt):
    """Raised where a request may stop at once."""


def own_process() -> None:
    """Say that the process serves one command alone: a second Ctrl-C may end it wherever it is."""
    _owned.set()


class StopRequest:
    """What asked to stop, if anything has.

    Args:
      say: told of the answer to a request; called from another thread.
      may_exit: whether a second Ctrl-C may end a process of ours in the middle of a computation.

    Attributes:
      signal: its number; None before a request.
      doing: what a request waits for, in words; None as long as one stops at once, by `Stopped`.
    """

    def __init__(self, say: Callable[[str], None] = lambda text: None, *, may_exit: bool = False):
        self.signal: int | None = None
        self.doing: str | None = None
        self._say, self._may_exit = say, may_exit
        self._heard: float | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Handle the signals inside the block (only the main thread can; elsewhere nothing is changed)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        # Who starts a program with nohup wants it to outlive the terminal.
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        answering = threading.Thread(target=self._answer, args=(reader,), name="devft-stop", daemon=True)
        answering.start()
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        previous = {number: signal.signal(number, self._hear) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            os.close(writer)
            answering.join()
            os.close(reader)

    def _hear(self, number: int, frame: object) -> None:
        """What Python does of a signal, in the main thread, once it gets to it."""
        if self._heard is None:
            self._heard = time.monotonic()
            self.signal = number
            if self.doing is None:
                raise Stopped
        elif number == signal.SIGINT and time.monotonic() - self._heard > _SAME_REQUEST:
            raise KeyboardInterrupt

    def _answer(self, reader: int) -> None:
        """What is done of a signal at once: it is answered, and a second Ctrl-C ends a process of ours."""
        first: float | None = None
        while numbers := os.read(reader, 1):
            number = numbers[0]
            if first is None:
                first = time.monotonic()
                self._say("stopping" if self.doing is None else f"finishing {self.doing}; Ctrl-C again stops now")
            elif number == signal.SIGINT and time.monotonic() - first > _SAME_REQUEST and self._may_exit and _owned.is_set():
                self._say("stopped at once; what was saved before stays whole: the same command goes on from there.")
                os._exit(128 + number)
