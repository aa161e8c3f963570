"""Finds the files of a path, a folder or a glob, and which of them are held-out data by their names.

In a folder, files and subfolders with certain names are held out: see `named_part`. Hugging Face's names for the parts of
one file (`train-00000-of-00002`) are recognised by `Shard`.
"""

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from devft_jax.data.built_in import BUILT_IN
from devft_jax.data.files import SUFFIXES, stem
from devft_jax.errors import InputError
from devft_jax.files import checked_path

# The words by which `datasets` recognises splits, and our own "held out"; no other letter may be next to them.
_LETTER = r"[^\W\d_]"

_HELD_OUT_WORD = re.compile(
    rf"(?<!{_LETTER})(test|testing|eval|evaluation|validation|valid|val|dev|held[^a-z]?out)(?!{_LETTER})"
)

_TRAINING_WORD = re.compile(rf"(?<!{_LETTER})(train|training)(?!{_LETTER})")

# Hugging Face's names for the parts of one split, such as train-00000-of-00002 and c4-train.00000-of-01024, some followed
# by a hash; and those of its own conversions to Parquet, which only number the parts in a split's folder.
_SHARD = re.compile(r"(?P<whole>.+)[-._](?P<index>\d{4,})[-_]of[-_](?P<total>\d{4,})(?:[-._][0-9a-f]{8,64})?", re.IGNORECASE)

_NUMBERED = re.compile(r"(?:.*/)?(?:partial-)?(?:train|validation|test)/\d{4}\.parquet", re.IGNORECASE)

# The folder in which Hugging Face's data sets keep their files.
_DATA_FOLDER = "data"

# Files of data sets that are not data.
_METADATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def held_out_files(spec: str | Sequence[str]) -> tuple[Path, ...]:
    """The files that a folder sets aside as held-out data by their names; empty for any other spec.

    Args:
      spec: one or several data names.
    """
    folder = only_folder(spec)
    if folder is None:
        return ()
    training, held_out = _folder_files(folder)
    return tuple(held_out) if training else ()


def only_folder(spec: str | Sequence[str]) -> Path | None:
    """The folder if exactly one folder is named; otherwise None.

    Args:
      spec: one or several data names.
    """
    one = spec if isinstance(spec, str) else spec[0] if len(spec) == 1 else ""
    if not one or one.partition(":")[0] in BUILT_IN:
        return None
    path = checked_path(one, "data")
    return path if path.is_dir() else None


def local_files(spec: str, part: str | None) -> list[tuple[str, Path]] | None:
    """The local files that a spec names, in natural order.

    Args:
      spec: a path, folder or glob, or the name of a data set on Hugging Face.
      part: "training" or "held-out", for a folder's files; None takes all of them.

    Returns:
      (name, path) of each file; None if the name can only be one on Hugging Face.

    Raises:
      InputError: no such file exists.
    """
    path = checked_path(spec, "data")
    if path.is_file():
        return [(stem(path.name), path)]
    if path.is_dir():
        training, held_out = _folder_files(path)
        chosen = {"training": training, "held-out": held_out, None: []}[part]
        files, root = chosen or training + held_out, path
    elif glob.has_magic(spec):
        found = [Path(match) for match in glob.glob(str(path), recursive=True)]
        root = _glob_root(path)
        files = [match for match in found if _is_data_file(match) and not _in_a_circle(match, root)]
    elif spec.startswith((".", "/", "~")) or spec.endswith("/") or spec.lower().endswith(SUFFIXES):
        what = "is not a regular file" if path.exists() else "does not exist"
        raise InputError(f"data {spec!r} {what}; give an existing file, folder or glob.")
    else:
        return None
    if not files:
        raise InputError(
            f"data {spec!r} matches no file that ends in {', '.join(SUFFIXES)}; check the path, "
            "and quote a glob so that the shell does not expand it; subfolders need one, such as 'folder/**/*.jsonl'."
        )
    by_name = [(stem(match.relative_to(root).as_posix()), checked_path(match, "the data file")) for match in files]
    return sorted(by_name, key=lambda item: _natural(item[0]))


def _folder_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The training and the held-out files of a folder, by their names."""
    found = list(_files_below(folder, folder, None))
    return [path for path, part in found if part != "held-out"], [path for path, part in found if part == "held-out"]


def _files_below(folder: Path, root: Path, part: str | None) -> Iterator[tuple[Path, str | None]]:
    """The data files of a folder with their part: set by the outermost folder whose name says it, else by the file's
    name."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "_")) or path.name in _METADATA:
            continue
        if _is_data_file(path):
            yield path, part or named_part(stem(path.name))
        elif path.is_dir() and not _in_a_circle(path / "file", root):
            named = named_part(path.name)
            if named or path.name.lower() == _DATA_FOLDER:
                yield from _files_below(path, root, part or named)


def named_part(name: str) -> str | None:
    """The part that the name of a file or folder indicates: "training", "held-out" or None.

    It is held-out if it contains one of the words test, testing, eval, evaluation, valid, validation, val, dev or held_out
    without another letter next to it (`global_test`, `gpt4-eval`, `dev2`, but not `latest`), in upper or lower case, unless
    it also contains train or training.

    Args:
      name: name without suffix.
    """
    name = name.lower()
    if _TRAINING_WORD.search(name):
        return "training"
    return "held-out" if _HELD_OUT_WORD.search(name) else None


def _is_data_file(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def _in_a_circle(path: Path, root: Path) -> bool:
    """Whether a link in the path below root leads to a folder that contains it: the same file has a shorter path."""
    folders = [folder.resolve() for folder in path.parents if folder == root or root in folder.parents]
    return len(folders) > len(set(folders))


def _glob_root(pattern: Path) -> Path:
    """The folder from which a glob starts: all leading parts without wildcards."""
    fixed = Path(pattern.anchor)
    for part in pattern.relative_to(pattern.anchor).parts:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorting key that compares numbers inside names as numbers."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


@dataclass(frozen=True)
class Shard:
    """A part of a file that was stored in several.

    Attributes:
      whole: name of the file without the part.
      index: number of the part, from 0.
      total: number of parts, if the name has it.
      path: path of the part.
    """

    whole: str
    index: int
    total: int | None
    path: Path

    @classmethod
    def of(cls, name: str, path: Path) -> "Shard | None":
        """The shard that a file's name describes; None if the file is complete in itself.

        Args:
          name: name below the folder in which it was found, without suffix.
          path: path of the file.
        """
        if found := _SHARD.fullmatch(name):
            return cls(found["whole"], int(found["index"]), int(found["total"]), path)
        if _NUMBERED.fullmatch(path.as_posix()):
            return cls(name.rpartition("/")[0] or path.parent.name, int(stem(path.name)), None, path)
        return None
