"""Checks of paths given by the user, before anything is done with them."""

import os
from pathlib import Path

from devft_jax.errors import InputError
from devft_jax.files.shown import printable

# Limits of Linux and macOS, in bytes: a name between two separators, and a whole path.
LONGEST_NAME = 255
LONGEST_PATH = 4096


def checked_path(value: str | Path, field: str) -> Path:
    """The path given by an option, with `~` expanded.

    Args:
      value: the path as the user wrote it.
      field: the option's name, for messages.

    Raises:
      InputError: no file can have this name.
    """
    text = str(value)
    # The end of a long path says most.
    shown = printable(text if len(text) <= 80 else f"{text[:20]}...{text[-55:]}")
    if not text:
        raise InputError(f"{field} is empty; name a file or folder.")
    if "\0" in text:
        raise InputError(f"{field} '{shown}' contains a NUL character, which file names cannot have; correct it.")
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{field} '{shown}' is not valid UTF-8; rename the file.") from error
    longest = max(len(part) for part in encoded.split(b"/"))
    if len(encoded) >= LONGEST_PATH or longest > LONGEST_NAME:
        raise InputError(
            f"{field} '{shown}' is too long for a file name ({len(encoded)} bytes, {longest} in one part); shorten it to "
            f"{LONGEST_PATH - 1} and {LONGEST_NAME}."
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{field} '{shown}' begins with an unknown home folder; write the whole path.") from error


def whole_path(path: Path) -> Path:
    """The absolute path, in which the last part may stay a link.

    Args:
      path: absolute or relative.
    """
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def existing_folder(path: str | Path, remedy: str) -> Path:
    """The folder at a path.

    Args:
      path: the path as the user wrote it.
      remedy: end of the error message if there is no such folder, such as "name a run's folder".

    Raises:
      InputError: nothing is there, or it is not a folder.
    """
    folder, shown = Path(path), printable(str(path))
    if not folder.exists():
        raise InputError(f"the folder {shown} does not exist; {remedy}.")
    if not folder.is_dir():
        raise InputError(f"{shown} is a file, not a folder; {remedy}.")
    return folder


def cache_folder() -> Path:
    """Where programs and tokens are stored between runs: `DEVFT_CACHE`, or ~/.cache/devft_jax if that is empty or unset.

    Raises:
      InputError: no file can have this name.
    """
    return checked_path(os.environ.get("DEVFT_CACHE") or "~/.cache/devft_jax", "DEVFT_CACHE")
