"""Digests of a checkpoint's files, by which a resumed run knows that every byte is still as it was written.

They are stored in the checkpoint as a list. It is written last, before the checkpoint gets its name, so that every
checkpoint has one:

    files     by path, of everything else in the checkpoint's folder: bytes and digest
    bank      of the file of what clients keep, outside the folder; null where they keep nothing
    metrics   of metrics.jsonl as far as the checkpoint's round
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
"""`bytes`, their number, and their `digest`."""


def new_digest(content: bytes = b"") -> Any:
    """A digest that bytes can be added to."""
    return hashlib.blake2b(content, digest_size=16)


def mark_of(path: Path, most: int | None = None) -> Mark:
    """The mark of a file, or of its first `most` bytes; OSError if it cannot be read or is no regular file."""
    if not path.is_file():
        raise OSError(errno.EINVAL, f"{path.name} is no regular file")
    digest, size = new_digest(), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE if most is None else min(_PIECE, most - size)):
            digest.update(piece)
            size += len(piece)
    return {"bytes": size, "digest": digest.hexdigest()}


def _marks_within(folder: Path) -> dict[str, Mark]:
    """The marks of all files of a folder but the list itself, by their paths in the folder."""
    return {
        name: mark_of(path)
        for path in sorted(folder.rglob("*"))
        if (name := path.relative_to(folder).as_posix()) != LIST_FILE and (path.is_symlink() or not path.is_dir())
    }


def write_list(folder: Path, *, bank: Path | None, metrics: Mark) -> None:
    """Write the list into a checkpoint's folder that is complete otherwise.

    Args:
      folder: the checkpoint's.
      bank: the file of what clients keep; None where they keep nothing.
      metrics: the mark of metrics.jsonl.

    Raises:
      OSError: a file cannot be read or written.
    """
    listed = {"files": _marks_within(folder), "bank": None if bank is None else mark_of(bank), "metrics": metrics}
    # Without blanks and line ends none of the list's own bytes can change unnoticed.
    write_atomically(folder / LIST_FILE, json.dumps(listed, separators=(",", ":")))


def read_list(folder: Path) -> dict[str, Any]:
    """The list of a checkpoint's folder; ValueError if it is missing or damaged."""
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
    """What is wrong with a checkpoint, in words; None if all is as it was written.

    Args:
      folder: the checkpoint's.
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
    """Whether a file still begins with the bytes of a mark."""
    if not mark["bytes"]:
        return True
    try:
        return os.path.getsize(path) >= mark["bytes"] and mark_of(path, mark["bytes"]) == mark
    except OSError:
        return False
