"""The folder of a model's files, local or fetched from Hugging Face; no file outside of it is read.

A folder may come from someone else. A shard's name that contains a separator would read another file of this machine, and so
would a link with the name of a tokenizer or a template, whose text is copied into exports. Links of such files are followed
within the folder and into Hugging Face's own cache, to which its snapshots link. Weights may be links to anywhere, for users
who keep them on another disk: only tensors with the model's own names and shapes are read there.
"""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from devft_jax.errors import InputError
from devft_jax.files import checked_path, printable, whole_path
from devft_jax.models.huggingface.safetensors import one_line, read_json

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

SMALL_FILES = ["*.json", "tokenizer.model", "merges.txt", "vocab.txt", "*.jinja"]
"""Configuration and tokenizer files in all forms: what is fetched of a model before its weights."""

WEIGHTS_SUFFIX = ".safetensors"

READ_FILES = [f"*{WEIGHTS_SUFFIX}", *SMALL_FILES]
"""Patterns of the files that are read in a model's folder."""

TEMPLATES_FOLDER = "additional_chat_templates"
"""Where transformers looks for further chat templates."""

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_COMMIT = re.compile("[0-9a-f]{40}")


def model_folder(path: str | Path, *, weights: bool = True) -> Path:
    """The local folder of a model; for a Hugging Face name, the folder into which its files are fetched.

    Args:
      path: a folder in Hugging Face's layout, or a name such as `meta-llama/Llama-2-7b-hf`.
      weights: whether to fetch the weights too, exactly the files that the index names; otherwise only config.json.

    Raises:
      InputError: there is no such folder, it cannot be fetched from Hugging Face, or a file in it is a link to outside.
    """
    folder = checked_path(path, "model")
    if folder.is_dir():
        check_inside(folder)
        return folder
    if folder.exists():
        raise InputError(f"the model {path} is a file; give the folder that contains its config.json.")
    if not _HUB_NAME.fullmatch(str(path)):
        raise InputError(f"the model folder {printable(str(path))} does not exist; give another or a Hugging Face name.")
    folder = _fetched(str(path), SMALL_FILES if weights else [CONFIG_FILE])
    if weights:
        index = folder / INDEX_FILE
        files = sorted(set(read_index(index).values())) if index.is_file() else [WEIGHTS_FILE]
        # The small files again, so that one folder, of one commit, has all files.
        commit = folder.name if _COMMIT.fullmatch(folder.name) else None
        folder = _fetched(str(path), [*SMALL_FILES, *files], commit)
    check_inside(folder)
    return folder


def named_from_anywhere(path: str) -> str:
    """A model's name in a form that can be stored: a local folder by its absolute path, otherwise its name.

    Args:
      path: a folder or a Hugging Face name.
    """
    folder = checked_path(path, "model")
    return str(whole_path(folder)) if folder.exists() else path


def _fetched(name: str, files: Sequence[str], commit: str | None = None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # Subfolders have the same weights in other formats.
        return Path(snapshot_download(name, revision=commit, allow_patterns=list(files), ignore_patterns=["*/*"]))
    except (OSError, ValueError) as error:
        raise InputError(
            f"the model {name} is not a local folder and could not be fetched from Hugging Face "
            f"({one_line(error)}); check the name, the network and, for a gated model, "
            "that you are logged in."
        ) from error


def read_index(index: Path) -> dict[str, str]:
    """File names by tensor, from `model.safetensors.index.json`.

    Args:
      index: path of the file.

    Raises:
      InputError: the file cannot be read, or names files other than safetensors files beside it.
    """
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(file, str) for file in shard_of.values()):
        raise InputError(f"{index} holds no weight_map from tensors to files; restore it.")
    for file in sorted(set(shard_of.values())):
        # Such characters would make the name a pattern when it is fetched.
        if not re.fullmatch(r"[\w.,=+-]+\.safetensors", file) or file.startswith("."):
            raise InputError(
                f"{index} names the shard '{printable(file)}', which is not the name of a safetensors file beside it; files "
                "outside the model's folder are not read: correct it."
            )
    return shard_of


def check_inside(folder: Path) -> None:
    """Raise `InputError` if a file that would be read is not a regular file, or is outside the folder.

    Args:
      folder: folder of a model or an adapter.
    """
    for file in _read_of(folder):
        try:
            regular = stat.S_ISREG(os.stat(file).st_mode)
        except OSError as error:
            if file.suffix == WEIGHTS_SUFFIX:
                raise InputError(
                    f"{file} is a link to {printable(str(_resolved(file)))}, which cannot be read ({one_line(error)}); "
                    "fetch the file itself."
                ) from error
            # A broken link counts as an absent file.
            continue
        if not regular and not file.is_dir():
            raise InputError(f"{file} is not a regular file; put the file itself there.")
        if file.suffix != WEIGHTS_SUFFIX and not any(_resolved(file).is_relative_to(place) for place in _places(folder)):
            raise InputError(
                f"{file} is a link to {printable(str(_resolved(file)))}, outside the folder, where only weights are "
                "read; put the file itself there."
            )


def _read_of(folder: Path) -> Iterator[Path]:
    for name in sorted(os.listdir(folder)):
        if any(fnmatch(name, pattern) for pattern in READ_FILES):
            yield folder / name
    templates = folder / TEMPLATES_FOLDER
    if templates.is_dir():
        yield templates
        yield from sorted(templates.iterdir())


def _resolved(file: Path) -> Path:
    return Path(os.path.realpath(file))


def _places(folder: Path) -> Iterator[Path]:
    """The folder, and where Hugging Face's cache keeps its files, to which its snapshots link."""
    own = _resolved(folder)
    yield own
    if own.parent.name == "snapshots":
        yield own.parent.parent / "blobs"
    from huggingface_hub.constants import HF_HUB_CACHE

    yield _resolved(Path(HF_HUB_CACHE))
