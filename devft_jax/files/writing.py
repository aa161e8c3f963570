"""Files that are replaced as a whole: written beside their place under a name nobody else has, then moved."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial"
"""Ending of a file that is written but not yet in its place."""


@contextmanager
def exclusive_temporary(path: Path) -> Iterator[Path]:
    """A new, empty file beside `path` that takes its place at the block's end; after a failure it is removed.

    It is made exclusively and follows no link, so that what others put there beforehand is not written through.
    """
    # A name's own length leaves room for what is added to it.
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}{PARTIAL}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0), 0o666))
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file as a whole: a process killed at any moment leaves the old one or the new one."""
    with exclusive_temporary(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
