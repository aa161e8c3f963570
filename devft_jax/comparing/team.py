"""The processes that share the runs of a comparison: how they divide runs, exchange results and stop together.

Runs take different times, so processes wait for each other for long. Unlike `Processes.of_all`, these waits end at a stop
request, to whichever process: a thread passes it on.
"""

import contextlib
import json
import threading
import time
from collections.abc import Sequence
from typing import Any, TypeVar

from devft_jax.runtime.processes import ALONE, Processes, coordination
from devft_jax.runtime.stopping import StopRequest

Item = TypeVar("Item")

LOOK = 0.5
"""Seconds between two looks at what the others have left in the coordination service."""
_STOP = "devft/compare/stop"


class Team:
    """The processes of a comparison. Inside a `with` block a stop request to one of them reaches all.

    Args:
      stop: whether this process was asked to stop.
      processes: the processes.

    Attributes:
      stop: as above.
      processes: as above.
    """

    def __init__(self, stop: StopRequest, processes: Processes = ALONE):
        self.stop, self.processes = stop, processes
        self._turn = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._pass_on, name="devft-team", daemon=True)

    def __enter__(self) -> "Team":
        """Begin to pass stop requests on."""
        if self.processes.several:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Pass no more requests on."""
        self._closed.set()
        if self.processes.several:
            self._thread.join()

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Those of a list that this process takes: every P-th.

        Args:
          items: the same list in all processes.
        """
        return list(items[self.processes.index :: self.processes.count])

    def of_all(self, value: Any) -> list[Any]:
        """A value of every process, in their order; waits for all of them.

        Args:
          value: of this process; JSON-ready and small.

        Raises:
          Stopped: a process was asked to stop.
        """
        if not self.processes.several:
            return [value]
        self._turn += 1
        return self._exchange(f"devft/compare/{self._turn}/", value, stoppable=True)

    def part(self, value: Any) -> list[Any]:
        """A value of every process when it has finished or stopped; waits for all of them.

        Args:
          value: of this process; JSON-ready and small.
        """
        return self._exchange("devft/compare/end/", value, stoppable=False) if self.processes.several else [value]

    def _exchange(self, folder: str, value: Any, *, stoppable: bool) -> list[Any]:
        client = coordination()
        client.key_value_set(f"{folder}{self.processes.index}", json.dumps(value))
        while len(found := dict(client.key_value_dir_get(folder))) < self.processes.count:
            if stoppable:
                self.stop.check()
            time.sleep(LOOK)
        return [json.loads(found[f"{folder}{index}"]) for index in range(self.processes.count)]

    def _pass_on(self) -> None:
        client = coordination()
        while not self._closed.wait(LOOK):
            if self.stop.signal is not None:
                client.key_value_set(_STOP, str(int(self.stop.signal)), allow_overwrite=True)
                return
            # There is no such key, unless a process was asked to stop.
            with contextlib.suppress(Exception):
                self.stop.signal = int(client.key_value_try_get(_STOP))
