"""Safetensors and JSON files, in and out: read with one clear sentence where they are damaged, replaced only when whole."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from devft_jax.errors import InputError, RunError

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Weight types that are read and written, by the name that safetensors gives them."""


def write_files(
    folder: Path,
    weights: tuple[str, Mapping[str, np.ndarray]],
    config: tuple[str, Mapping[str, Any]],
) -> None:
    """Write a safetensors and a JSON file, given as (name, content), replacing older ones only when complete.

    Raises:
      RunError: the folder cannot be written.
    """
    # save_file stores memory as it lies, so it would scramble a transposed view.
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in weights[1].items()}
    text = json.dumps(config[1], indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / weights[0], lambda new: save_file(tensors, new, metadata={"format": "pt"}))
        _replace(folder / config[0], lambda new: new.write_text(text, encoding="utf-8"))
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"the folder {folder} cannot be written ({one_line(error)}); free space or choose another folder."
        ) from error


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a neighbouring file, then move it to `path`."""
    new = path.with_name(path.name + ".new")
    try:
        # safetensors makes files that only their owner may read; an ordinary new file shows the user's default.
        new.touch()
        mode = new.stat().st_mode
        write(new)
        new.chmod(mode)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
      InputError: the file cannot be read or holds something else.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({one_line(error)}); restore it.") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path} does not hold a JSON object; restore it.")
    return fields


def one_line(error: Exception) -> str:
    """The first line of an error's text, to stand inside a sentence."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".:")


@contextmanager
def open_safetensors(file: Path) -> Iterator[Any]:
    """An open safetensors file that gives numpy tensors one at a time.

    Raises:
      InputError: the file cannot be read, is damaged or is truncated.
    """
    try:
        with safe_open(file, framework="numpy") as tensors:
            yield tensors
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} is damaged, truncated or no safetensors file ({one_line(error)}); restore it.") from error
