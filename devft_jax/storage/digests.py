"""Digests of a checkpoint's files, by which a resumed run verifies that every byte is unchanged.

They are stored in a list in the checkpoint, which is written last, before the checkpoint gets its name, so every checkpoint
has one:

    files     by path, for all other files in the checkpoint's folder: number of bytes and digest
    bank      for the file of what clients keep, outside the folder; null if they keep nothing
    metrics   for metrics.jsonl up to the checkpoint's round
"""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from devft_jax.files import read_json, write_atomically

LIST_FILE = "digests.json"

_PIECE = 2**20
Mark = dict[str, Any]
"""`bytes`, the number of bytes, and `digest`, their digest."""


def new_digest(content: bytes = b"") -> Any:
    """A digest to which bytes can be added."""
    return hashlib.blake2b(content, digest_size=16)


def mark_of(path: Path, most: int | None = None) -> Mark:
    """The mark of a file, or of its first `most` bytes; raises OSError if it cannot be read or is not a regular file."""
    if not path.is_file():
        raise OSError(errno.EINVAL, f"{path.name} is not a regular file")
    digest, size = new_digest(), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE if most is None else min(_PIECE, most - size)):
            digest.update(piece)
            size += len(piece)
    return {"bytes": size, "digest": digest.hexdigest()}


def _marks_within(folder: Path) -> dict[str, Mark]:
    """The marks of all files in a folder except the list itself, by relative path."""
    return {
        name: mark_of(path)
        for path in sorted(folder.rglob("*"))
        if (name := path.relative_to(folder).as_posix()) != LIST_FILE and (path.is_symlink() or not path.is_dir())
    }


def write_list(folder: Path, *, bank: Path | None, metrics: Mark) -> None:
    """Write the list into a checkpoint's folder that is otherwise complete.

    Args:
      folder: the checkpoint's folder.
      bank: the file of what clients keep; None if they keep nothing.
      metrics: the mark of metrics.jsonl.

    Raises:
      OSError: a file cannot be read or written.
    """
    listed = {"files": _marks_within(folder), "bank": None if bank is None else mark_of(bank), "metrics": metrics}
    # Without spaces and line ends, no byte of the list can change without being noticed.
    write_atomically(folder / LIST_FILE, json.dumps(listed, separators=(",", ":")))


def read_list(folder: Path) -> dict[str, Any]:
    """The list of a checkpoint's folder; raises ValueError if it is missing or damaged."""
    if not (folder / LIST_FILE).exists():
        raise ValueError(f"it has no {LIST_FILE}")
    listed = read_json(folder / LIST_FILE)
    parts = {"files", "bank", "metrics"}
    if not isinstance(listed, dict) or listed.keys() != parts or not isinstance(listed["files"], dict):
        raise ValueError(f"{LIST_FILE} is damaged")
    if not _is_mark(listed["metrics"]):
        raise ValueError(f"{LIST_FILE} is damaged")
    return listed


def _is_mark(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"bytes", "digest"} and type(value["bytes"]) is int


def fault_of(folder: Path, bank: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None if nothing has changed.

    Args:
      folder: the checkpoint's folder.
      bank: the file of what clients keep; it need not exist if the checkpoint has none.
    """
    try:
        listed = read_list(folder)
        found = _marks_within(folder)
        if listed["bank"] is not None:
            listed["files"][bank.name] = listed["bank"]
            if bank.is_file():
                found[bank.name] = mark_of(bank)
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)
    for name in sorted(listed["files"].keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in listed["files"]:
            return f"{name} was added"
        if found[name] != listed["files"][name]:
            return f"{name} was changed or is damaged"
    return None


def same_start(path: Path, mark: Mark) -> bool:
    """Whether a file still begins with the bytes described by a mark."""
    if not mark["bytes"]:
        return True
    try:
        return os.path.getsize(path) >= mark["bytes"] and mark_of(path, mark["bytes"]) == mark
    except OSError:
        return False
