"""Turns failed writes to a run's folder into one sentence, whichever library raised the error."""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from devft_jax.errors import RunError


@contextlib.contextmanager
def saving(folder: Path, what: str) -> Iterator[None]:
    """Turn a failed write inside the block into one sentence.

    Args:
      folder: the run's folder.
      what: what is being written, in words.

    Raises:
      RunError: the write failed.
    """
    try:
        with quiet_libraries():
            yield
    except Exception as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        if folder.is_dir():
            reason += f"; {shutil.disk_usage(folder).free:,} bytes free"
        raise RunError(
            f"{what} could not be saved in {folder} ({type(error).__name__}: {reason}); everything "
            "saved before is complete: free space there and run again to resume."
        ) from error


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep orbax from printing the traceback of an error that will be reported in one sentence."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
