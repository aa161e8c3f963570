"""Stopping between two pieces of work, each of which is kept once it is finished."""

from devft_jax.runtime.stopping import StopRequest


class WorkStopped(Exception):  # noqa: N818
    """A stop was requested, and what was under way is finished.

    Args:
      number: of the signal.

    Attributes:
      number: of the signal.
    """

    def __init__(self, number: int):
        self.number = number


class Abandoned(Exception):  # noqa: N818
    """The work is to end, so that the next attempt of one piece is not waited for."""


class Stop:
    """What asks pieces of work to end.

    Args:
      request: the request for a stop; None where nobody makes one.
    """

    def __init__(self, request: StopRequest | None = None) -> None:
        self._request = request

    @property
    def wanted(self) -> bool:
        """Whether a stop was requested."""
        return self._request is not None and self._request.signal is not None

    def check(self) -> None:
        """Raise `WorkStopped` where a stop was requested."""
        if self._request is not None and self._request.signal is not None:
            raise WorkStopped(self._request.signal)

    def doing(self, what: str | None) -> None:
        """Say what is finished before a request is obeyed.

        Args:
          what: in words; None where a request may end the work at once.
        """
        if self._request is not None:
            self._request.doing = what
