"""The one place that writes to the terminal.

Names of files, clients and categories come from outside: characters that would move a terminal's cursor or colour its text,
and those that its encoding lacks, are shown as escapes (`devft_jax.files.printable`).
"""

import contextlib
import io
import os
import sys
from typing import TextIO

from devft_jax.errors import RunError
from devft_jax.files import printable


def show(text: str = "", *, end: str = "\n", stream: TextIO | None = None) -> None:
    """Print text of one or several lines; nothing if the stream was closed when the program started.

    Args:
      text: what to print.
      end: printed after it.
      stream: where; None for standard output.

    Raises:
      BrokenPipeError: the reader of a pipe has gone.
      RunError: standard output cannot be written for another reason.
      OSError: another stream cannot be written.
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
    """The error of a standard output that cannot be written."""
    return RunError(f"standard output cannot be written ({error.strerror}); what it was to show is incomplete.")


def complain(text: str) -> None:
    """Print a sentence on standard error, in one line; if that cannot be written, the exit code alone has to say it."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(printable(text), file=sys.stderr, flush=True)


def prepare() -> None:
    """Make the standard streams accept any text, and open those that are closed on the null device.

    In a program started without one of them the next file opened would get its number, and messages would go into that file.
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
    """Flush the standard streams.

    What cannot be written is discarded, because Python would report it at its exit with an exit code of its own.

    Returns:
      The error if standard output could not be written, else None.
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
    """Redirect a stream to the null device, with what is still in its buffer."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
