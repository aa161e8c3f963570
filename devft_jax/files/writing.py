"""Replaces files atomically: they are written next to their place under a unique name, then moved."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial"
"""Suffix of a file that is written but not yet in its place."""


_TEMPORARY = re.compile(rf"\.(.+)\.[0-9a-f]{{16}}{re.escape(PARTIAL)}")


def temporary_name(path: Path) -> Path:
    """A unique name next to `path`.

    Args:
      path: path of the file.
    """
    # The name is cut so that the suffix still fits.
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}{PARTIAL}")


@contextmanager
def exclusive_temporary(path: Path) -> Iterator[Path]:
    """A new, empty file next to `path` that replaces it at the end of the block; after a failure it is removed.

    It is created exclusively and follows no link, so that nothing is written through a file that others put there.

    Args:
      path: path of the file.
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
      name: name of a file.
    """
    found = _TEMPORARY.fullmatch(name)
    return found and found[1]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file atomically: if the process is killed, either the old or the new file is there.

    Args:
      path: path of the file.
      content: the whole content.
    """
    with exclusive_temporary(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
