"""The one place where text goes to the terminal.

Names of files, clients and categories come from outside: what would move a terminal's cursor or colour its text is shown as
its escape (`devft_jax.files.printable`); what the terminal's encoding lacks too.
"""

import contextlib
import io
import os
import sys
from typing import TextIO

from devft_jax.errors import RunError
from devft_jax.files import printable


def show(text: str = "", *, end: str = "\n", stream: TextIO | None = None) -> None:
    """Text of one or several lines, on standard output by default; nowhere where that was closed.

    Raises:
      BrokenPipeError: the reader of a pipe has gone. RunError: standard output cannot be written otherwise.
      OSError: another stream cannot be.
    """
    stream = sys.stdout if stream is None else stream
    if stream is None:
        return
    try:
        print(printable(text, keep="\n\t"), end=end, file=stream, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        if stream is sys.stdout:
            raise not_written(error) from error
        raise


def not_written(error: OSError) -> RunError:
    """What is said where standard output takes no more."""
    return RunError(f"standard output cannot be written ({error.strerror}); what it was to show is incomplete.")


def complain(text: str) -> None:
    """A sentence on standard error, in one line; where that cannot be written the exit code has to do."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(printable(text), file=sys.stderr, flush=True)


def prepare() -> None:
    """Make the standard streams take any text, and keep files that are opened later off closed ones.

    A program started without one of them would give its number to the next file that it opens, into which others then write.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def finish() -> OSError | None:
    """Write what the standard streams still hold; the error where standard output could not be written.

    What is left unwritten is given up, so that Python does not complain of it at its exit with a code of its own.
    """
    failed = None
    for stream in (sys.stderr, sys.stdout):
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            failed = error if isinstance(error, OSError) and stream is sys.stdout else None
            discard(stream)
    return failed


def discard(stream: TextIO) -> None:
    """Send what a stream holds, and gets from now on, nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
