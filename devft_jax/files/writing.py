"""Files that are replaced as a whole: written beside their place under a name nobody else has, then moved."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial"
"""Ending of a file that is written but not yet in its place."""


_TEMPORARY = re.compile(rf"\.(.+)\.[0-9a-f]{{16}}{re.escape(PARTIAL)}")


def temporary_name(path: Path) -> Path:
    """A name beside `path` that nobody else has.

    Args:
      path: of the file.
    """
    # A name's own length leaves room for what is added to it.
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}{PARTIAL}")


@contextmanager
def exclusive_temporary(path: Path) -> Iterator[Path]:
    """A new, empty file beside `path` that takes its place at the block's end; after a failure it is removed.

    It is made exclusively and follows no link, so that what others put there beforehand is not written through.

    Args:
      path: of the file.
    """
    temporary = temporary_name(path)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0), 0o666))
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def intended_name(name: str) -> str | None:
    """The name of the file that a temporary file was to replace; None for any other file.

    Args:
      name: of a file.
    """
    found = _TEMPORARY.fullmatch(name)
    return found and found[1]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file as a whole: a process killed at any moment leaves the old one or the new one.

    Args:
      path: of the file.
      content: all of it.
    """
    with exclusive_temporary(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
