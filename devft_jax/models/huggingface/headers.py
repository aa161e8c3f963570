"""Checks the headers of a checkpoint's files against `config.json` before the first weight is read.

A wrong or damaged checkpoint is then reported immediately.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from devft_jax.errors import InputError
from devft_jax.files import printable
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.huggingface.families import FAMILIES, read_config
from devft_jax.models.huggingface.folder import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, read_index
from devft_jax.models.huggingface.names import EMBEDDING, HEAD, Place, full_name, places
from devft_jax.models.huggingface.safetensors import open_safetensors
from devft_jax.models.options import DTYPES


class Stored(NamedTuple):
    """A tensor as the header of its file describes it.

    Attributes:
      file: the file that has it.
      name: its name in the file.
      shape: its shape.
      dtype: safetensors' name of its data type.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def stored_dtypes(folder: Path) -> dict[str, str]:
    """The data type in which each leaf of a model's folder is stored, by name, from the headers of its files.

    Args:
      folder: the model's folder.
    """
    stored = stored_tensors(folder)
    belonging = checked_places(folder, read_config(folder / CONFIG_FILE), stored)
    return {place.leaf: DTYPES[stored[name].dtype] for name, place in reversed(belonging.items())}


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """The tensors in a checkpoint's files, by their names in a complete model.

    Args:
      folder: the model's folder.

    Raises:
      InputError: there is no safetensors file, or one is absent, damaged, or without the tensors that the index lists.
    """
    single, index = folder / WEIGHTS_FILE, folder / INDEX_FILE
    if single.is_file():
        return _header(single)
    if not index.is_file():
        pickles = sorted(file.name for ending in ("bin", "pt", "pth") for file in folder.glob(f"*.{ending}"))
        if pickles:
            raise InputError(
                f"the model folder {folder} holds its weights as a pickle ({pickles[0]}), which can "
                "run code when read; convert them to safetensors."
            )
        raise InputError(
            f"the model folder {folder} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}; give a folder with safetensors."
        )
    shard_of = read_index(index)
    stored: dict[str, Stored] = {}
    names_of: dict[str, list[str]] = {}
    for name, shard in shard_of.items():
        names_of.setdefault(shard, []).append(name)
    for shard, names in sorted(names_of.items()):
        if not (folder / shard).is_file():
            raise InputError(f"the shard {shard} that {index} names is absent; restore it.")
        header = _header(folder / shard)
        for name in names:
            found = header.get(full_name(name))
            if found is None or found.name != name:
                raise InputError(f"the shard {shard} lacks the tensor {printable(name)} that {index} promises; restore it.")
            if (twin := stored.get(found_as := full_name(name))) is not None:
                raise InputError(f"{index} names both {twin.name} and {name}, which are the same tensor; remove one.")
            stored[found_as] = found
    return stored


def _header(file: Path) -> dict[str, Stored]:
    """The tensors in a file, by their names in a complete model."""
    with open_safetensors(file) as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        found: dict[str, Stored] = {}
        for name, part in slices.items():
            full = full_name(name)
            if full in found:
                raise InputError(f"{file} has both {found[full].name} and {name}, which are the same tensor; remove one.")
            found[full] = Stored(file, name, tuple(part.get_shape()), part.get_dtype())
        return found


def checked_places(folder: Path, config: ModelConfig, stored: dict[str, Stored]) -> dict[str, Place]:
    """Where every tensor belongs, by name; known before anything of the sizes in config.json is allocated.

    A tied embedding may be stored only under the head's name: `stored` then gets it under its own name.

    Args:
      folder: the model's folder.
      config: its architecture.
      stored: the tensors in its files.

    Raises:
      InputError: the checkpoint does not have exactly the architecture's tensors.
    """
    title = FAMILIES[config.family].title
    if config.tied_head and HEAD in stored:
        stored.setdefault(EMBEDDING, stored[HEAD])
    found_places: dict[str, Place] = {}
    for name, place in places(config):
        if name not in stored:
            remedy = "restore it or set tie_word_embeddings" if name == HEAD else "restore it"
            raise InputError(
                f"the checkpoint in {folder} lacks the tensor {name} of a {title} with "
                f"num_hidden_layers {config.layers}; {remedy}."
            )
        found = stored[name]
        if found.shape != place.shape:
            raise InputError(
                f"the tensor {found.name} in {found.file} has shape {found.shape} but {CONFIG_FILE} "
                f"implies {place.shape}; correct the config or restore the weights."
            )
        if found.dtype not in DTYPES:
            raise InputError(
                f"the tensor {found.name} in {found.file} has the type {found.dtype}; give weights in {', '.join(DTYPES)}."
            )
        found_places[name] = place
    for name, found in stored.items():
        ignored = name.endswith("rotary_emb.inv_freq") or (config.tied_head and name == HEAD)
        if name not in found_places and not ignored:
            raise InputError(
                f"the checkpoint in {folder} holds the tensor {printable(found.name)}, which a {title} with "
                f"num_hidden_layers {config.layers} does not have; correct the config or choose "
                "another model."
            )
    return found_places


def check_one_dtype(folder: Path, belonging: Mapping[str, Place], stored: Mapping[str, Stored]) -> None:
    """Raise `InputError` if the layers of one leaf are stored in different data types.

    Args:
      folder: the model's folder.
      belonging: where every tensor belongs.
      stored: the tensors in its files.
    """
    types: dict[str, str] = {}
    for name, place in belonging.items():
        first = types.setdefault(place.leaf, stored[name].dtype)
        if stored[name].dtype != first:
            raise InputError(
                f"the tensor {name} in {folder} has the type {stored[name].dtype} where earlier "
                f"layers have {first}; give dtype, such as bfloat16, to convert all."
            )
