"""How far an evaluation is, as a line every few seconds with the time that is left."""

import time
from collections.abc import Callable

from devft_jax.reporting.progress import Progress
from devft_jax.reporting.waiting import readable_seconds

PAUSE = 10.0
"""Seconds between two lines."""


class Meter:
    """Counts finished requests and says from time to time how many are left and how long they will take.

    Args:
      progress: takes the lines; None for none.
      what: what is done, such as "log-likelihoods".
      requests: how many there are in all.
      kept: how many of them were finished before.
      clock: gives the time in seconds.
    """

    def __init__(
        self,
        progress: Progress | None,
        what: str,
        requests: int,
        kept: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress, self._what, self._clock = progress, what, clock
        self._requests, self._done = requests, kept
        self._share = 0.0
        self._began: tuple[float, float] | None = None
        self._said = clock()
        if progress is not None and kept:
            progress.say(f"  {what}: {kept:,} of {requests:,} requests were finished before")

    def advance(self, requests: int, share: float) -> None:
        """Count what was finished.

        Args:
          requests: how many requests were finished now.
          share: of all the work of this run, how much is done so far, from 0 to 1.
        """
        now = self._clock()
        self._done += requests
        self._share = share
        if self._began is None and share > 0:
            # The first pass compiles, and says nothing of the others.
            self._began = now, share
        if self._progress is None or now - self._said < PAUSE or self._began is None:
            return
        self._said = now
        began, first = self._began
        left = ""
        if share > first:
            left = f"  left {readable_seconds((now - began) / (share - first) * (1 - share))}"
        self._progress.say(f"  {self._what} {self._done:,}/{self._requests:,} requests{left}")
