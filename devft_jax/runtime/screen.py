"""The only module that writes to the terminal.

Names of files, clients and categories come from outside: characters that would control the terminal, and those that its
encoding does not have, are shown as escapes (`devft_jax.files.printable`).
"""

import contextlib
import io
import os
import sys
import threading
from typing import TextIO

from devft_jax.errors import RunError
from devft_jax.files import printable

_LOCK = threading.RLock()
_drawn: TextIO | None = None
"""The terminal whose last line is replaced by the next output."""


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a line of a stream can be rewritten.

    Args:
      stream: the stream.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
    return False


def draw(text: str, *, stream: TextIO) -> None:
    """Show one line at a terminal, which the next output replaces.

    Args:
      text: what to show; empty to remove the line.
      stream: a terminal.

    Raises:
      OSError: it cannot be written.
    """
    global _drawn
    with _LOCK:
        print(f"\r\x1b[K{printable(text)}", end="", file=stream, flush=True)
        _drawn = stream if text else None


def _erase() -> None:
    """Remove the line that was drawn, if there is one."""
    if _drawn is not None:
        with contextlib.suppress(OSError, ValueError):
            draw("", stream=_drawn)


def show(text: str = "", *, end: str = "\n", stream: TextIO | None = None) -> None:
    """Print text of one or several lines; nothing if the stream was closed when the program started.

    Args:
      text: what to print.
      end: printed after the text.
      stream: where to print; None for standard output.

    Raises:
      BrokenPipeError: the reader of a pipe has closed it.
      RunError: standard output cannot be written for another reason.
      OSError: another stream cannot be written.
    """
    stream = sys.stdout if stream is None else stream
    if stream is None:
        return
    try:
        with _LOCK:
            _erase()
            print(printable(text, keep="\n\t"), end=end, file=stream, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        if stream is sys.stdout:
            raise not_written(error) from error
        raise


def not_written(error: OSError) -> RunError:
    """The error for a standard output that cannot be written."""
    return RunError(f"standard output cannot be written ({error.strerror}); its output is incomplete.")


def complain(text: str) -> None:
    """Print a sentence on standard error, as one line; if that cannot be written, only the exit code reports the error."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError), _LOCK:
            _erase()
            print(printable(text), file=sys.stderr, flush=True)


def prepare() -> None:
    """Make the standard streams accept any text, and open closed ones on the null device.

    If one of them is closed at the start, the next opened file would get its number, and messages would be written to that
    file.
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

    What cannot be written is discarded, because Python would otherwise report it at exit with its own exit code.

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
    """Redirect a stream to the null device, including what is in its buffer."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
