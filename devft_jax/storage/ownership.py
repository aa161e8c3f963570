"""Checks whether a folder or file may be written, before anything is written.

A folder may be written if it is empty or holds the same kind of work, recognised by the contents of files, not by their
names. Any other folder is refused and not changed. Links are refused too, because writing would follow them to other files;
and a subfolder that is replaced as a whole may contain only files that are written into it.
"""

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devft_jax.errors import InputError
from devft_jax.files import read_json
from devft_jax.files.writing import intended_name

Names = Callable[[str], bool]
"""Whether an entry of this name is among those that are written."""

PAGE_MARK = '<meta name="generator" content="devft"/>'
"""Near the start of every page that is written."""

RUN_OPTIONS = frozenset({"algorithm", "growth", "model", "data", "rounds", "seed"})
"""Options that every run's config.json has, in all versions."""

EXPORT_FILE = "devft_export.json"
"""File that records where an export comes from; a folder that has it may be written again by the same request."""

LOCK_FILE = ".lock"
_MARK_WITHIN = 4096


@dataclass(frozen=True)
class Kind:
    """What a folder may contain.

    Attributes:
      name: in words.
      left: whether a folder holds this kind of work.
      files: names of the files that are written.
      folders: names of the subfolders that are written; for those that are replaced as a whole, the names they may contain.
    """

    name: str
    left: Callable[[Path], bool]
    files: frozenset[str]
    folders: dict[str, Names | None] = field(default_factory=dict)

    @property
    def one(self) -> str:
        """`a run`, `an export`."""
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"


def is_run(path: Path) -> bool:
    """Whether the folder's config.json is that of a run."""
    fields = _fields(path / "config.json")
    return fields.keys() >= RUN_OPTIONS and "model_type" not in fields


def _is_comparison(path: Path) -> bool:
    if {"budgets", "reference", "seeds"} <= _fields(path / "comparison.json").keys():
        return True
    # A comparison that was stopped has the configurations of its runs.
    asked = list((path / "runs").glob("*.json"))
    return bool(asked) and all({"algorithm", "growth", "rounds"} <= _fields(file).keys() for file in asked)


def _is_export(path: Path) -> bool:
    return {"source", "form", "stage", "client", "model"} <= _fields(path / EXPORT_FILE).keys()


def _is_judged(path: Path) -> bool:
    return {"questions", "models", "judge", "results"} <= _fields(path / "results.json").keys()


_ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors", "generation_config.json"}
RUN = Kind(
    "run",
    is_run,
    frozenset(
        {"config.json", "split.json", "split.svg", "metrics.jsonl", "record.json", "summary.json", "report.html", LOCK_FILE}
        | {"metrics.csv", "wandb.json"}
    ),
    {
        "checkpoints": None,
        "bank": None,
        "tensorboard": None,
        "wandb": None,
        "adapter": _ADAPTER_FILES.__contains__,
        "adapter-best": _ADAPTER_FILES.__contains__,
    },
)
"""The folder of a run."""
COMPARISON = Kind(
    "comparison",
    _is_comparison,
    frozenset({*(f"comparison.{kind}" for kind in ("csv", "json", "md", "html")), "runs.csv", LOCK_FILE}),
    {"runs": None, "scores": None},
)
"""The folder of a comparison."""
EXPORT = Kind("export", _is_export, frozenset({EXPORT_FILE}), {"adapter": None})
"""The folder of an exported adapter or model."""
JUDGED = Kind(
    "set of judgements",
    _is_judged,
    frozenset({"results.json", "results.txt", LOCK_FILE}),
    {"model_answer": None, "model_judgment": None},
)
"""The folder of judged answers."""
KINDS = (RUN, COMPARISON, EXPORT, JUDGED)


def claim(path: Path, kind: Kind) -> bool:
    """Whether a folder already holds this kind of work; False if it is empty or absent.

    Args:
      path: the folder that will be written.
      kind: what will be written.

    Raises:
      InputError: it holds something else, or cannot be read.
    """
    try:
        return _claimed(path, kind)
    except OSError as error:
        raise InputError(f"out {path} cannot be read ({error.strerror}); name a writable folder.") from error


def _claimed(path: Path, kind: Kind) -> bool:
    _refuse_inside_of_a_run(path)
    if not path.exists() and not path.is_symlink():
        return False
    if not path.is_dir():
        what = "a file" if path.is_file() else "no folder"
        raise InputError(f"out {path} is {what}; name an absent or empty folder.")
    found = sorted(entry.name for entry in os.scandir(path))
    others = [name for name in found if name != LOCK_FILE and not _is_left_over(name, kind)]
    mine = kind.left(path)
    if not mine:
        for other in KINDS:
            if other is not kind and other.left(path):
                raise InputError(f"out {path} holds {other.one}; name another folder for the {kind.name}.")
        if others:
            first = next((name for name in ("config.json", EXPORT_FILE) if name in others), others[0])
            _refuse_damaged(path, first)
            raise InputError(f"out {path} holds something else ({first}); name an absent or empty folder.")
    _refuse_the_root(path, kind)
    for name in found:
        if name in kind.files or name in kind.folders:
            _check_entry(path / name, kind, is_folder=name in kind.folders)
    return mine


def _refuse_damaged(path: Path, name: str) -> None:
    """Raise `InputError` if the file that identifies the folder's contents cannot be read."""
    if name not in ("config.json", EXPORT_FILE) or not (path / name).is_file():
        return
    try:
        read_json(path / name)
    except InputError as error:
        reason = str(error).rpartition(";")[0].removeprefix(f"{path}/")
        raise InputError(
            f"out {path} holds something else ({reason}); name an absent or empty folder, or restore {name} if it is yours."
        ) from error


def _is_left_over(name: str, kind: Kind) -> bool:
    """Whether this entry is the unfinished work of a killed process."""
    meant = intended_name(name)
    return meant in kind.files or meant in kind.folders


def remove_left_over(path: Path, kind: Kind) -> None:
    """Remove the unfinished work of killed processes from a folder of this kind, which must be locked."""
    within = [entry for name in kind.folders if (path / name).is_dir() for entry in os.scandir(path / name)]
    for entry in [*os.scandir(path), *within]:
        if _is_left_over(entry.name, kind) or (entry in within and intended_name(entry.name)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def claim_file(path: Path) -> None:
    """Raise `InputError` unless a page may be written here: the file is absent or an earlier page."""
    if path.is_symlink():
        raise InputError(f"out {path} is a link; remove it, or name another file.")
    if not path.exists():
        return
    if not path.is_file():
        raise InputError(f"out {path} is not a file; name the page to write, such as report.html.")
    try:
        with path.open("rb") as file:
            start = file.read(_MARK_WITHIN)
    except OSError as error:
        raise InputError(f"out {path} cannot be read ({error.strerror}); name another file.") from error
    if PAGE_MARK.encode() not in start:
        raise InputError(f"out {path} exists and is not a report; remove it, or name another file.")


def _refuse_inside_of_a_run(path: Path) -> None:
    whole = path.resolve()
    for inner, outer in zip([whole, *whole.parents], whole.parents, strict=False):
        if inner.name in RUN.folders and is_run(outer):
            raise InputError(f"out {path} is inside {inner}, which the run replaces; name another folder.")


def _refuse_the_root(path: Path, kind: Kind) -> None:
    for folder, what in ((Path(path.anchor), "the root of all files"), (_home(), "the home folder")):
        if folder is not None and folder.exists() and path.samefile(folder):
            raise InputError(f"out {path} is {what}; name a folder for the {kind.name} alone, such as runs/first.")


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None


def _check_entry(entry: Path, kind: Kind, *, is_folder: bool) -> None:
    if entry.is_symlink():
        raise InputError(f"{entry} is a link, and the {kind.name} would be written to its target; remove it.")
    if is_folder != entry.is_dir() or not (is_folder or entry.is_file()):
        wanted = "folder" if is_folder else "file"
        raise InputError(f"{entry} is not a {wanted}, but the {kind.name} writes one of that name; move it away.")
    written = kind.folders.get(entry.name)
    if written is not None:
        refuse_foreign(entry, written)


def refuse_foreign(folder: Path, written: Names) -> None:
    """Raise `InputError` if a folder that will be replaced holds anything that is not written into it."""
    foreign = sorted(_foreign(os.scandir(folder), written))
    if foreign:
        raise InputError(f"{folder} holds {foreign[0]}, which would be lost when it is replaced; move it away.")


def _foreign(entries: Iterable[os.DirEntry[str]], written: Names) -> Iterable[str]:
    return (entry.name for entry in entries if not written(entry.name) or not entry.is_file(follow_symlinks=False))


def _fields(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none."""
    try:
        value = read_json(path) if path.is_file() else {}
    except InputError:
        return {}
    return value if isinstance(value, dict) else {}
