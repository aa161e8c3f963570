"""What is being done while no round ends: which step, how far it is, and for how long it has been going on.

At a terminal one line is rewritten until the step ends, and stays there with the step's duration if that was long:

      compiling what clients train in stage 1 ... 12s
      reading and splitting the data ... 4,096 of 20,000 records tokenised, 3s

Elsewhere, such as in a log file, a line is added when a step has taken a while, and then at growing distances.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

LONG = 2.0
"""Seconds of a step whose line stays at a terminal."""


def readable_seconds(seconds: float) -> str:
    """A duration as 42s, 3m05s or 2h07m."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


@dataclass
class Step:
    """A step in which no round ends.

    Attributes:
      what: what is done, such as "reading the model".
      began: when it began, in seconds of a monotonic clock.
      state: how far it is; empty if that is not known.
      reports: how often it was reported.
      due: when it is reported next, by the same clock.
    """

    what: str
    began: float = field(default_factory=time.monotonic)
    state: str = ""
    reports: int = 0
    due: float = 0.0

    def count(self, done: int, total: int, things: str) -> None:
        """Note how far the step is.

        Args:
          done: number of things that are done.
          total: number of all of them.
          things: what they are, such as "records tokenised".
        """
        self.state = f"{done:,} of {total:,} {things}"

    def text(self, now: float) -> str:
        """The step in one line, with its duration.

        Args:
          now: the present, by the same clock.
        """
        return f"  {self.what} ... {', '.join(filter(None, (self.state, readable_seconds(now - self.began))))}"


class Watch:
    """Reports the steps that a run waits for, from a thread of its own; of steps within each other the innermost.

    Args:
      add: adds a line.
      draw: shows a line that the next output replaces; None where lines can only be added.
      first: seconds after which a step is reported.
      again: seconds between later reports where lines are added; the last of them is repeated.
    """

    def __init__(
        self,
        add: Callable[[str], None],
        draw: Callable[[str], None] | None = None,
        *,
        first: float,
        again: Sequence[float] = (15, 60, 300),
    ):
        self._add, self._draw, self._first, self._again = add, draw, first, again
        self._lock, self._steps = threading.RLock(), list[Step]()

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[Step]:
        """Report a step while the block runs.

        Args:
          what: what is done.

        Yields:
          The step, whose state can be set.
        """
        step, ended = Step(what), threading.Event()
        step.due = step.began + self._first
        with self._lock:
            self._steps.append(step)
            outermost = len(self._steps) == 1
        if outermost:
            threading.Thread(target=self._watch, args=[ended], daemon=True).start()
        try:
            yield step
        finally:
            ended.set()
            with self._lock:
                self._steps.remove(step)
                self._close(step, time.monotonic())

    def _watch(self, ended: threading.Event) -> None:
        """Report whatever is due until the outermost step has ended."""
        while not ended.wait(min(0.5, self._first / 2)):
            with self._lock:
                if not ended.is_set():
                    self.report(time.monotonic())

    def report(self, now: float) -> None:
        """Report the innermost step if that is due.

        Args:
          now: the present, in seconds of the monotonic clock.
        """
        step = self._steps[-1]
        if now < step.due:
            return
        step.reports += 1
        if self._draw is not None:
            self._draw(step.text(now))
            return
        step.due = now + self._again[min(step.reports, len(self._again)) - 1]
        self._add(f"  {step.what} ..." if step.reports == 1 and not step.state else step.text(now))

    def _close(self, step: Step, now: float) -> None:
        """Replace a step's line at a terminal by one that stays, or by nothing if it was short."""
        if self._draw is None or not step.reports:
            return
        self._draw("")
        if now - step.began >= LONG:
            self._add(step.text(now))
