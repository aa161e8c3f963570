"""Reads and writes safetensors and JSON files: damaged ones are reported in one clear sentence; writes are atomic."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from devft_jax.errors import InputError, RunError
from devft_jax.files import exclusive_temporary
from devft_jax.files import read_json as read_any_json
from devft_jax.files.writing import intended_name
from devft_jax.models.options import DTYPES

HEADER_ALIGNMENT = 8


class PlannedTensor(NamedTuple):
    """A tensor to be written, whose values are computed later.

    Attributes:
      shape: shape of the tensor.
      dtype: a value of `DTYPES`.
      make: computes its values.
    """

    shape: tuple[int, ...]
    dtype: str
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def float_dtype(name: str) -> np.dtype:
    """The data type with this name; raises `InputError` if weights cannot be written in it.

    Args:
      name: name of the data type.
    """
    if name not in DTYPES.values():
        raise InputError(f"dtype {name!r} is unknown; choose from {', '.join(DTYPES.values())}.")
    return np.dtype(name)


def write_safetensors(file: Path, tensors: Mapping[str, PlannedTensor]) -> None:
    """Write a safetensors file, computing one tensor at a time.

    The library's own writer takes all tensors of a file at once and copies them, which doubles the memory of a shard.

    Args:
      file: path of the new file.
      tensors: tensors by name.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": names[tensor.dtype], "shape": tensor.shape, "data_offsets": (begin, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            # A transposed view has its bytes in a different order; bfloat16 has no buffer protocol.
            values = np.ascontiguousarray(tensor.make(), tensor.dtype)
            out.write(values.reshape(-1).view(np.uint8).data)


def replace_files(
    folder: Path,
    files: Mapping[str, Callable[[Path], Any]],
    *,
    key_file: str,
    stale: Callable[[str], bool] = lambda name: False,
) -> None:
    """Replace files that belong together, so that old and new ones can never be mixed.

    All are first written beside their places; a failure before that is complete changes nothing. Then the old key file,
    without which no reader opens the folder, is removed; the others are moved to their places, older files that are `stale`
    are removed, and the new key file is moved last. A process killed in between leaves a folder that nothing loads.

    Args:
      folder: created if absent; other files in it stay.
      files: for every file name, a function that writes it to a path.
      key_file: name of the key file, one of `files`.
      stale: whether an older file must be removed, by its name; not called for `files`.

    Raises:
      RunError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        older = list(folder.iterdir())
        # Contexts are left in the reverse of the order in which they are entered.
        with ExitStack() as stack:
            for name in sorted(files, key=lambda name: name != key_file):
                files[name](stack.enter_context(exclusive_temporary(folder / name)))
            (folder / key_file).unlink(missing_ok=True)
            for old in older:
                intended = intended_name(old.name)
                if intended in files or (old.name not in files and stale(intended or old.name)):
                    old.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(
            f"the folder {folder} cannot be written ({one_line(error)}); free space or choose another folder."
        ) from error


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Write a JSON object to one of the files of `replace_files`.

    Args:
      path: path of the file.
      fields: fields of the object.
    """
    path.write_text(json_text(fields), encoding="utf-8")


def json_text(fields: Mapping[str, Any]) -> str:
    """A JSON object, one field per line.

    Args:
      fields: fields of the object.
    """
    return json.dumps(fields, indent=2) + "\n"


def shown(value: Any) -> str:
    """A value of a configuration for a message, shortened if it is long.

    Args:
      value: any JSON value.
    """
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
      path: of the file.

    Raises:
      InputError: the file cannot be read or holds something else.
    """
    fields = read_any_json(path)
    if not isinstance(fields, dict):
        raise InputError(f"{path} does not hold a JSON object; restore it.")
    return fields


def one_line(error: Exception) -> str:
    """The first line of an error's text, for use inside a sentence.

    Args:
      error: any error.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".:")


@contextmanager
def open_safetensors(file: Path) -> Iterator[Any]:
    """An open safetensors file that returns numpy tensors one at a time.

    Args:
      file: path of the file.

    Raises:
      InputError: the file cannot be read, is damaged or is truncated.
    """
    try:
        with safe_open(file, framework="numpy") as tensors:
            yield tensors
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{file} is damaged, truncated or not a safetensors file ({one_line(error)}); restore it."
        ) from error
