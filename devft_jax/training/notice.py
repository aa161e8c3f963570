"""Reports that the run waits for a program to be compiled."""

import contextlib

from devft_jax.reporting import Progress
from devft_jax.reporting.waiting import Step

_PROGRAMS = {
    "chunk": "what clients train",
    "evaluate": "what evaluates held-out data",
    "distil": "what distils fused layers",
    "prefix": "the layers below",
    "slope": "the gradient on public text",
    "finalize": "the server's step",
}
"""Compiled programs that take a while, in words for the progress output."""


class CompilationNotice:
    """Reports which program is compiled while the run waits for it.

    Args:
      progress: the progress output.

    Attributes:
      stage: the stage for which it is compiled, from 0; None before the first.
    """

    def __init__(self, progress: Progress):
        self.stage: int | None = None
        self._progress = progress

    def __call__(self, name: str) -> contextlib.AbstractContextManager[Step]:
        """The context that is open while the program of this name is compiled."""
        stage = "" if self.stage is None else f" in stage {self.stage + 1}"
        return self._progress.doing(f"compiling {_PROGRAMS.get(name, name)}{stage}")
