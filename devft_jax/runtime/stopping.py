"""Stop requests: Ctrl-C, SIGTERM (sent by schedulers and containers) and SIGHUP (the terminal was closed).

While no work would be lost, such as while a model is loaded or the first program compiled, the first request stops at once.
Later the current work, such as a round, is finished and saved first. A background thread reports this immediately, because
Python handles a signal only when the running computation returns. A second Ctrl-C then stops without finishing.

Processes that work together stop together: a request to one of them counts for all when they next agree (`settle`).
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

# One request may reach a process twice, for example if its group is signalled too; a signal this soon is not a second one.
_SAME_REQUEST = 0.5

_owned = threading.Event()
_ends_at_once = threading.Event()


class Stopped(KeyboardInterrupt):
    """Raised by a stop request when nothing would be lost, or by `check` after the current work is saved."""


def own_process() -> None:
    """Declare that the process runs only one command, so that a second Ctrl-C may end it anywhere."""
    _owned.set()


def is_own_process() -> bool:
    """Whether the process runs only one command."""
    return _owned.is_set()


def end_without_waiting() -> None:
    """Declare that a run with other processes has failed here: JAX would wait for them when this process exits."""
    if not _ends_at_once.is_set():
        atexit.register(leave, 1)
    _ends_at_once.set()


def leave(code: int) -> None:
    """End the process now if `end_without_waiting` was called; else do nothing.

    Args:
      code: the exit code.
    """
    if _ends_at_once.is_set():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)


class StopRequest:
    """Whether a stop was requested.

    Args:
      say: prints the answer to a request; called from another thread.
      may_exit: whether a second Ctrl-C may end the process in the middle of a computation (only after `own_process`).
      agree: of several processes, (the signal that this one got, or None) -> the signal that counts for all, or None; called
        by all of them. None for a single process.

    Attributes:
      signal: number of the signal; None before a request.
      doing: the work, in words, that is finished before the stop; None while a request stops at once, by raising `Stopped`.
    """

    def __init__(
        self,
        say: Callable[[str], None] = lambda text: None,
        *,
        may_exit: bool = False,
        agree: Callable[[int | None], int | None] | None = None,
    ):
        self.signal: int | None = None
        self._agree = agree
        self._own: int | None = None
        self.doing: str | None = None
        self._say, self._may_exit = say, may_exit
        self._first_at: float | None = None

    def settle(self) -> None:
        """Let a request to any of several processes count; without others, requests count immediately."""
        if self._agree is not None and self.signal is None:
            self.signal = self._agree(self._own)

    def check(self) -> None:
        """Raise `Stopped` if a stop was requested; called where nothing would be lost."""
        if self.signal is not None:
            raise Stopped

    @contextlib.contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Handle the signals inside the block. Only the main thread can do this; in another thread nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        # A program started with nohup ignores SIGHUP, so that it outlives the terminal.
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        answering = threading.Thread(target=self._answer, args=(reader,), name="devft-stop", daemon=True)
        answering.start()
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        previous = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            os.close(writer)
            answering.join()
            os.close(reader)

    def _handle(self, number: int, frame: object) -> None:
        """The signal handler; called in the main thread, when the running computation returns."""
        if self._first_at is None:
            self._first_at = time.monotonic()
            self._own = number
            if self._agree is None or self.doing is None:
                self.signal = number
            if self.doing is None:
                raise Stopped
        elif number == signal.SIGINT and time.monotonic() - self._first_at > _SAME_REQUEST:
            raise KeyboardInterrupt

    def _answer(self, reader: int) -> None:
        """Runs on a thread and answers a signal immediately; a second Ctrl-C may end the process here."""
        first: float | None = None
        while numbers := os.read(reader, 1):
            number = numbers[0]
            if first is None:
                first = time.monotonic()
                self._say("stopping" if self.doing is None else f"finishing {self.doing}; Ctrl-C again stops now")
            elif number == signal.SIGINT and time.monotonic() - first > _SAME_REQUEST and self._may_exit and _owned.is_set():
                self._say("stopped at once; everything saved before is complete: the same command resumes the run.")
                os._exit(128 + number)
