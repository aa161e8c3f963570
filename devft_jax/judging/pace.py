"""Progress of many pieces of work of one kind: how many are done, and how long the others will take."""

import time

from devft_jax.reporting import Progress
from devft_jax.reporting.progress import readable_seconds

EVERY = 5.0
"""Seconds between two lines."""


class Pace:
    """Says from time to time how many of some pieces are done.

    Args:
      progress: where it is said.
      what: is done, such as "answers of base".
      total: pieces.
      done: pieces that were there before.
    """

    def __init__(self, progress: Progress, what: str, total: int, done: int = 0) -> None:
        self.progress, self.what, self.total = progress, what, total
        self.done = self._before = done
        self._begun = self._said = time.monotonic()

    def add(self, pieces: int) -> None:
        """Count pieces that were finished.

        Args:
          pieces: how many.
        """
        self.done += pieces
        now = time.monotonic()
        if self.done == self.total or now - self._said < EVERY:
            return
        self._said = now
        left = (now - self._begun) / max(self.done - self._before, 1) * (self.total - self.done)
        self.progress.say(f"  {self.what}: {self.done}/{self.total}  left {readable_seconds(left)}")
