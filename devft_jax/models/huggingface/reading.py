"""Reads checkpoints of the LLaMA family in Hugging Face's layout, without PyTorch.

A folder has `config.json`, the weights as one `model.safetensors` or as shards listed by `model.safetensors.index.json`, and
the tokenizer's files. Every header is first checked against `config.json` (`devft_jax.models.huggingface.headers`). Weights
are then streamed: one tensor at a time is transposed from Hugging Face's `[out, in]` into its layer of a preallocated
`[L, in, out]` array, and packed at once for a quantised base. Loading therefore needs the memory of the final model plus one
tensor. Only safetensors are read as weights, because a pickle can run code.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from devft_jax.errors import InputError, RunError
from devft_jax.models.architecture import ARCHITECTURES, PROJECTIONS, ModelConfig
from devft_jax.models.base import Base, Block
from devft_jax.models.huggingface.families import read_config
from devft_jax.models.huggingface.folder import CONFIG_FILE, model_folder, named_from_anywhere
from devft_jax.models.huggingface.headers import Stored, check_one_dtype, checked_places, stored_tensors
from devft_jax.models.huggingface.model import Model
from devft_jax.models.huggingface.names import EMBEDDING, HEAD, Place, block_of
from devft_jax.models.huggingface.safetensors import float_dtype, open_safetensors
from devft_jax.models.options import BITS, DTYPES
from devft_jax.models.quantization import QTensor, quantize_projection
from devft_jax.runtime.devices import host_device

STRIP_ROWS = 64
"""Rows that are transposed at once: for a whole matrix every element would touch a new cache line."""

ALIGNMENT_BYTES = 64
"""JAX on the CPU uses host memory with this alignment instead of copying it."""


def load_pretrained(
    path: str | Path,
    *,
    quantization: str | None = None,
    dtype: str | None = None,
    note: Callable[[int, int], None] | None = None,
) -> Model:
    """Read a model of the LLaMA family from a local folder or by its Hugging Face name.

    Args:
      path: a folder in Hugging Face's layout, or a name such as `meta-llama/Llama-2-7b-hf`, whose safetensors and JSON
        files are downloaded once into the Hugging Face cache.
      quantization: "int8", "int4" or "nf4" to pack every projection while it is read (`devft_jax.models.quantization`);
        None or "none" keeps floats.
      dtype: "float32", "bfloat16" or "float16" to convert all weights that stay floats; None keeps the stored type.
      note: called with the number of tensors that have been read and the number of all of them.

    Returns:
      The model, its weights on the default device.

    Raises:
      InputError: there is no such model, it is damaged, disagrees with its config.json, or is not one that this package
        computes exactly.
    """
    if quantization is not None and quantization not in ("none", *BITS):
        raise InputError(f"quantization {quantization!r} is unknown; choose from none, {', '.join(BITS)}.")
    if dtype is not None:
        float_dtype(dtype)
    folder = model_folder(path)
    config = read_config(folder / CONFIG_FILE)
    leaves = _read_leaves(folder, config, dtype, None if quantization == "none" else quantization, note)
    on_device = {leaf: jax.device_put(leaves.pop(leaf)) for leaf in list(leaves)}
    outside = {leaf: on_device.pop(leaf, None) for leaf in ("embed", "norm", "head")}
    return Model(config, Base(blocks=block_of(config, on_device), **outside), folder, named_from_anywhere(str(path)))


def load_original_blocks(path: str | Path, *, dtype: str | None = None) -> Block:
    """The layers of a model as floats in host memory (numpy), as its files store them.

    A quantised run whose stages are fused from the original weights reads them this way, at every stage.

    Args:
      path: as in `load_pretrained`.
      dtype: as in `load_pretrained`.
    """
    folder = model_folder(path)
    config = read_config(folder / CONFIG_FILE)
    leaves = _read_leaves(folder, config, dtype, None)
    return block_of(config, {leaf: value for leaf, value in leaves.items() if leaf not in ("embed", "norm", "head")})


def model_architecture(path: str | Path) -> ModelConfig:
    """The architecture of a model without its weights.

    Args:
      path: a folder with a config.json, a name in `ARCHITECTURES`, which needs no network, or any other Hugging Face
        name, of which only config.json is downloaded.

    Raises:
      InputError: there is no such config.json, or it describes a model that this package does not compute exactly.
    """
    if str(path) in ARCHITECTURES and not Path(path).exists():
        return ARCHITECTURES[str(path)]
    return read_config(model_folder(path, weights=False) / CONFIG_FILE)


def _read_leaves(
    folder: Path,
    config: ModelConfig,
    dtype: str | None,
    quantization: str | None,
    note: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Stream the tensors of a checkpoint into stacked leaves in host memory, by name; packed projections are `QTensor`s."""
    stored = stored_tensors(folder)
    places = checked_places(folder, config, stored)
    if dtype is None:
        check_one_dtype(folder, places, stored)
    leaves: dict[str, Any] = {}
    done = 0
    for file, names in _names_by_file(places, stored).items():
        with open_safetensors(file) as tensors:
            for name in names:
                done += 1
                if note is not None:
                    note(done, len(places))
                place, own_name = places[name], stored[name].name
                # The tensor is not bound to a name, so that it is freed before the next one is read.
                if quantization is not None and place.leaf in PROJECTIONS:
                    _pack(leaves, place, config.layers, tensors.get_tensor(own_name), name, quantization)
                    continue
                if place.leaf not in leaves:
                    shape = place.shape[::-1] if place.transposed else place.shape
                    layers = () if place.layer is None else (config.layers,)
                    leaves[place.leaf] = _empty((*layers, *shape), dtype or DTYPES[stored[name].dtype])
                leaf = leaves[place.leaf]
                _fill(
                    leaf if place.layer is None else leaf[place.layer],
                    tensors.get_tensor(own_name),
                    place.transposed,
                )
    if config.tied_head and HEAD in stored and stored[HEAD] != stored[EMBEDDING]:
        with open_safetensors(stored[HEAD].file) as tensors:
            head = tensors.get_tensor(stored[HEAD].name).astype(leaves["embed"].dtype)
        if not np.array_equal(head, leaves["embed"]):
            raise InputError(
                f"tie_word_embeddings is true in {folder / CONFIG_FILE} but the stored {HEAD} "
                "differs from the embedding; set it to false."
            )
    return leaves


def _names_by_file(places: Mapping[str, Place], stored: Mapping[str, Stored]) -> dict[Path, list[str]]:
    names: dict[Path, list[str]] = {}
    for name in places:
        names.setdefault(stored[name].file, []).append(name)
    return names


def _pack(leaves: dict[str, Any], place: Place, layers: int, tensor: np.ndarray, name: str, quantization: str) -> None:
    """Quantise one layer of a projection on the host, directly into its leaf."""
    with jax.default_device(host_device()):
        packed = quantize_projection(name, tensor.T, quantization)
    if place.leaf not in leaves:
        code, scale = (_empty((layers, *part.shape), part.dtype.name) for part in (packed.code, packed.scale))
        leaves[place.leaf] = QTensor(code, scale, quantization)
    leaf = leaves[place.leaf]
    leaf.code[place.layer] = packed.code
    leaf.scale[place.layer] = packed.scale


def _fill(target: np.ndarray, tensor: np.ndarray, transposed: bool) -> None:
    """Copy a tensor into its place in a leaf, converted to the leaf's data type."""
    if not transposed:
        target[...] = tensor
        return
    for row in range(0, len(tensor), STRIP_ROWS):
        target[:, row : row + STRIP_ROWS] = tensor[row : row + STRIP_ROWS].T


def _empty(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An uninitialised array that JAX can use in place."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        memory = np.empty(size + ALIGNMENT_BYTES, np.uint8)
    except MemoryError as error:
        raise RunError(
            f"the model does not fit into this machine's memory ({size:,} bytes for one kind of weight); use a smaller one, "
            "or pack it with --quantization nf4."
        ) from error
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[start : start + size].view(dtype).reshape(shape)
