"""Where a model's files lie: a folder, or what is fetched of a model on Hugging Face, and nothing outside of either.

A folder may come from someone else. A shard's name with a separator in it would read another file of this machine, and so
would a link under the name of a tokenizer or a template, whose text is copied into exports. Such links are followed within
the folder and into Hugging Face's own cache, which its snapshots link to. Weights may be links to anywhere, for those who
keep them on another disk: only tensors of the model's own names and shapes are read there.
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
"""Configuration and the files of a tokenizer in any form: what is fetched of a model before its weights."""

WEIGHTS_SUFFIX = ".safetensors"

READ_FILES = [f"*{WEIGHTS_SUFFIX}", *SMALL_FILES]
"""Names of what is read in a model's folder."""

TEMPLATES_FOLDER = "additional_chat_templates"
"""Where transformers looks for further templates."""

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_COMMIT = re.compile("[0-9a-f]{40}")


def model_folder(path: str | Path, *, weights: bool = True) -> Path:
    """The local folder of a model; where `path` is a Hugging Face name, one into which its files are fetched.

    Args:
      path: a folder in Hugging Face's layout, or a name such as `meta-llama/Llama-2-7b-hf`.
      weights: fetch the weights too, exactly the files that the index names; otherwise config.json alone.

    Raises:
      InputError: there is no such folder, Hugging Face does not give it, or a file in it lies elsewhere.
    """
    folder = checked_path(path, "model")
    if folder.is_dir():
        check_inside(folder)
        return folder
    if folder.exists():
        raise InputError(f"the model {path} is a file; give the folder that holds its config.json.")
    if not _HUB_NAME.fullmatch(str(path)):
        raise InputError(f"the model folder {printable(str(path))} does not exist; give another or a Hugging Face name.")
    folder = _fetched(str(path), SMALL_FILES if weights else [CONFIG_FILE])
    if weights:
        index = folder / INDEX_FILE
        files = sorted(set(read_index(index).values())) if index.is_file() else [WEIGHTS_FILE]
        # The small files again, so that one folder, of one commit, holds all.
        commit = folder.name if _COMMIT.fullmatch(folder.name) else None
        folder = _fetched(str(path), [*SMALL_FILES, *files], commit)
    check_inside(folder)
    return folder


def named_from_anywhere(path: str) -> str:
    """A model as it may be stored: a local folder by its absolute path, else its name.

    Args:
      path: a folder or a Hugging Face name.
    """
    folder = checked_path(path, "model")
    return str(whole_path(folder)) if folder.exists() else path


def _fetched(name: str, files: Sequence[str], commit: str | None = None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # Subfolders hold the same weights in other formats.
        return Path(snapshot_download(name, revision=commit, allow_patterns=list(files), ignore_patterns=["*/*"]))
    except (OSError, ValueError) as error:
        raise InputError(
            f"the model {name} is not a local folder and Hugging Face does not give it "
            f"({one_line(error)}); check the name, the network and, where the model is gated, "
            "that you are logged in."
        ) from error


def read_index(index: Path) -> dict[str, str]:
    """File names by tensor, as `model.safetensors.index.json` has them.

    Args:
      index: path of the file.

    Raises:
      InputError: the file cannot be read, or names something else than safetensors beside it.
    """
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(file, str) for file in shard_of.values()):
        raise InputError(f"{index} holds no weight_map from tensors to files; restore it.")
    for file in sorted(set(shard_of.values())):
        # Names with such characters would be patterns where they are fetched.
        if not re.fullmatch(r"[\w.,=+-]+\.safetensors", file) or file.startswith("."):
            raise InputError(
                f"{index} names the shard '{printable(file)}', which is no name of a safetensors file beside it; nothing "
                "outside the model's folder is read: correct it."
            )
    return shard_of


def check_inside(folder: Path) -> None:
    """Raise `InputError` where a file that would be read of a folder is no regular file, or is outside the folder.

    Args:
      folder: of a model or an adapter.
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
            raise InputError(f"{file} is no regular file; put the file itself there.")
        if file.suffix != WEIGHTS_SUFFIX and not any(_resolved(file).is_relative_to(place) for place in _places(folder)):
            raise InputError(
                f"{file} is a link to {printable(str(_resolved(file)))}, outside the folder, where nothing but weights is "
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
    """The folder, and where the files of Hugging Face's cache lie, to which its snapshots' names are links."""
    own = _resolved(folder)
    yield own
    if own.parent.name == "snapshots":
        yield own.parent.parent / "blobs"
    from huggingface_hub.constants import HF_HUB_CACHE

    yield _resolved(Path(HF_HUB_CACHE))
