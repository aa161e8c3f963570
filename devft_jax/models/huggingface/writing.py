"""Writes checkpoints of the LLaMA family in Hugging Face's layout, without PyTorch.

Saving streams: a tensor is computed, merged with its adapter if one is given, and written before the next, to as many files
as their size requires.
"""

import functools
import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from devft_jax.errors import InputError, RunError
from devft_jax.models.adapter import Adapter, layer_scales
from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.huggingface.end_tokens import generation_settings
from devft_jax.models.huggingface.families import config_fields
from devft_jax.models.huggingface.folder import CONFIG_FILE, GENERATION_CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE
from devft_jax.models.huggingface.names import BIAS, EMBEDDING, HEAD, NORM_MODULES, block_tensors, leaf_of
from devft_jax.models.huggingface.safetensors import (
    PlannedTensor,
    float_dtype,
    read_json,
    replace_files,
    write_json,
    write_safetensors,
)
from devft_jax.models.huggingface.tokenizer import TOKENIZER_FILES, load_tokenizer
from devft_jax.models.weights import Weight, dense_weight

COMPANION_FILES = (
    *TOKENIZER_FILES,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    GENERATION_CONFIG_FILE,
)
"""Files that are copied with a model's weights into a folder made from it."""

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

WEIGHT_FILES = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
"""Names of the safetensors files of a model's weights, and of their index."""

MAX_SHARD_BYTES = 5_000_000_000
"""Largest size in bytes of a file of weights, as in Hugging Face."""


def save_pretrained(
    path: str | Path,
    config: ModelConfig,
    base: Base,
    *,
    adapter: Adapter | None = None,
    dtype: str | Mapping[str, str] = "auto",
    source: str | Path | None = None,
    bos_id: int | None = None,
    eos_id: int | None = None,
    answer_ends: Sequence[int] = (),
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> int:
    """Write a model folder that transformers and `load_pretrained` read: config.json, weights, the source's tokenizer.

    Weights are computed and written one tensor at a time. Older weights and config.json are replaced, whatever their number
    of files, once all new files are complete; config.json comes last, so that an incompletely replaced folder does not load.

    Args:
      path: the folder, created if absent; files that are not part of a model stay.
      config: the architecture; the depth and whether the head is tied are taken from `base`.
      base: weights; quantised projections are written dequantised.
      adapter: merged into the projections, W + scale * a @ b in float32 for every layer. Quantised projections are
        dequantised first, so that the merged model computes the same as the adapter beside them. Layers that it does not
        change keep their bits.
      dtype: stored data type, "bfloat16", "float32" or "float16"; "auto" keeps the type of every weight, and writes
        dequantised ones in the embedding's; or a mapping from leaf names to types, as from `stored_dtypes`.
      source: folder of the model from which the weights come. Its tokenizer's and generation settings' files are copied,
        in place of older ones, and config.json gets the ids of its special tokens.
      bos_id: id of the token that begins a document; None uses the source's, or writes none without a source.
      eos_id: id of the token that ends a document, as `bos_id`.
      answer_ends: ids at which generation stops; generation_config.json gets them in addition to the source's own.
      max_shard_bytes: largest size of a file of weights, unless a single tensor is larger; several files are listed by an
        index.

    Returns:
      Bytes of the weights.

    Raises:
      InputError: `dtype` is not one of these, `max_shard_bytes` is not positive, the adapter does not fit the base, or
        the source's config.json or tokenizer cannot be read.
      RunError: the folder cannot be written, or a merged weight is NaN or infinite.
    """
    dtypes = _dtypes_to_write(base, dtype)
    if max_shard_bytes < 1:
        raise InputError(f"max_shard_bytes {max_shard_bytes} is not positive; use {MAX_SHARD_BYTES} as Hugging Face does.")
    depth = base.blocks.norm_mlp.shape[0]
    if adapter is not None:
        _check_adapter(config, adapter, depth)
    folder, origin = Path(path).expanduser(), None if source is None else Path(source).expanduser()
    given = {"bos_token_id": bos_id, "eos_token_id": eos_id}
    ids = ({} if origin is None else _special_ids(origin)) | {name: id for name, id in given.items() if id is not None}
    shape = {"num_hidden_layers": depth, "tie_word_embeddings": base.head is None}
    tensors = _planned_tensors(config, base, adapter, dtypes)
    copied = () if origin is None or origin.resolve() == folder.resolve() else COMPANION_FILES
    files = _weight_files(tensors, max_shard_bytes)
    for name in copied:
        if (file := Path(origin or "") / name).is_file():
            files[name] = functools.partial(shutil.copyfile, file)
    if (settings := generation_settings(origin, ids, answer_ends)) is not None:
        files[GENERATION_CONFIG_FILE] = functools.partial(write_json, fields=settings)
    fields = config_fields(config) | shape | ids | {"torch_dtype": dtypes["embed"]}
    files[CONFIG_FILE] = functools.partial(write_json, fields=fields)
    replace_files(
        folder, files, key_file=CONFIG_FILE, stale=lambda name: bool(WEIGHT_FILES.fullmatch(name)) or name in copied
    )
    return sum(tensor.nbytes for tensor in tensors.values())


def _special_ids(source: Path) -> dict[str, Any]:
    """Ids of the special tokens from the source's config.json, or else from its tokenizer."""
    fields = read_json(source / CONFIG_FILE)
    ids = {name: fields[name] for name in SPECIAL_IDS if fields.get(name) is not None}
    missing = [name for name in SPECIAL_IDS[:2] if name not in ids]
    if missing and any((source / name).is_file() for name in TOKENIZER_FILES):
        tokenizer = load_tokenizer(source)
        found = {name: getattr(tokenizer, name) for name in missing}
        ids |= {name: value for name, value in found.items() if value is not None}
    return ids


def _dtypes_to_write(base: Base, dtype: str | Mapping[str, str]) -> dict[str, str]:
    """The data type in which each leaf is written, by the names of `block_tensors` and `embed`, `norm` and `head`."""
    leaves = {"embed": base.embed, "norm": base.norm, "head": base.head}
    leaves |= {name: getattr(base.blocks, name) for name in (*PROJECTIONS, *NORM_MODULES)}
    leaves |= {f"{BIAS}{name}": bias for name, bias in base.blocks.bias.items()}
    floats = np.dtype(base.embed.dtype).name
    own = {
        name: floats if isinstance(leaf, Weight) else np.dtype(leaf.dtype).name
        for name, leaf in leaves.items()
        if leaf is not None
    }
    given = {} if dtype == "auto" else dict.fromkeys(own, dtype) if isinstance(dtype, str) else dtype
    found = own | {name: given[name] for name in own if name in given}
    for name in found.values():
        float_dtype(name)
    return found


def _check_adapter(config: ModelConfig, adapter: Adapter, depth: int) -> None:
    """Raise `InputError` unless the adapter's factors have the shapes of a base of this depth."""
    if adapter.hyper is not None:
        raise InputError("an adapter from a hypernetwork has no weights that could be merged into the model; leave it out.")
    for name, factors in adapter.lora.items():
        fan_in, fan_out = config.projection_shape(name)
        rank = factors.a.shape[-1]
        if factors.a.shape != (depth, fan_in, rank) or factors.b.shape != (depth, rank, fan_out):
            raise InputError(
                f"the adapter's factors of {name}_proj have the shapes {factors.a.shape} and {factors.b.shape} but the base "
                f"of {depth} layers needs {(depth, fan_in, rank)} and {(depth, rank, fan_out)}; give an adapter of this "
                "base."
            )


def _planned_tensors(
    config: ModelConfig, base: Base, adapter: Adapter | None, dtypes: Mapping[str, str]
) -> dict[str, PlannedTensor]:
    """Every tensor of a checkpoint with Hugging Face's names and shapes, not yet computed; `dtypes` by leaf."""
    depth = base.blocks.norm_mlp.shape[0]
    scales = {} if adapter is None else layer_scales(adapter, depth)

    def outside(leaf: str, weight: jax.Array, transposed: bool = False) -> PlannedTensor:
        shape = weight.shape[::-1] if transposed else weight.shape

        def make() -> np.ndarray:
            array = _dense(leaf, weight, dtypes[leaf])
            return array.T if transposed else array

        return PlannedTensor(shape, dtypes[leaf], make)

    def within(leaf: str, layer: int, name: str, transposed: bool) -> PlannedTensor:
        stack = leaf_of(base.blocks, leaf)
        shape = stack.shape[1:]

        def make() -> np.ndarray:
            weight = jax.tree.map(lambda part: part[layer], stack)
            if adapter is not None and leaf in adapter.lora:
                factors = jax.tree.map(lambda part: np.asarray(part[layer], np.float32), adapter.lora[leaf])
                update = np.float32(scales[leaf][layer]) * (factors.a @ factors.b)
                array = _merged(f"{name} (layer {layer}, counted from 0)", weight, update, dtypes[leaf])
            else:
                array = _dense(name, weight, dtypes[leaf])
            return array.T if transposed else array

        return PlannedTensor(shape[::-1] if transposed else shape, dtypes[leaf], make)

    tensors = {EMBEDDING: outside("embed", base.embed)}
    for layer in range(depth):
        for leaf, (module, transposed) in block_tensors(config).items():
            name = f"model.layers.{layer}.{module}"
            tensors[name] = within(leaf, layer, name, transposed)
    tensors["model.norm.weight"] = outside("norm", base.norm)
    if base.head is not None:
        tensors[HEAD] = outside("head", base.head, transposed=True)
    return tensors


def _dense(name: str, weight: Any, dtype: str) -> np.ndarray:
    """A weight in the type in which it is written; warns if it is not finite."""
    array = np.asarray(dense_weight(weight, np.dtype(dtype)))
    if not np.isfinite(array).all():
        warnings.warn(f"{name} has NaN or infinite values in {array.dtype.name} and is written with them.", stacklevel=2)
    return array


def _merged(name: str, weight: Any, update: np.ndarray, dtype: str) -> np.ndarray:
    """A layer's weight [in, out] plus its low-rank update, added in float32, in the type in which it is written.

    Raises:
      RunError: the sum is not finite.
    """
    dense = np.asarray(dense_weight(weight, np.dtype(np.float32)))
    # Adding zero would turn -0.0 into 0.0.
    with np.errstate(over="ignore", invalid="ignore"):
        array = np.where(update == 0, dense, dense + update).astype(dtype)
    if not np.isfinite(array).all():
        part = "the adapter's" if not np.isfinite(update).all() else "the base's"
        part = "the merged" if np.isfinite(update).all() and np.isfinite(dense).all() else part
        raise RunError(
            f"{name} cannot be merged: {part} weights have NaN or infinite values in {dtype}; nothing was written: give "
            "undamaged weights, or dtype float32 if the range of the type is too small."
        )
    return array


def _weight_files(tensors: Mapping[str, PlannedTensor], most: int) -> dict[str, Callable[[Path], Any]]:
    """By name, a function that writes each file of weights, and the index if there are several."""
    shards = _shards(tensors, most)
    files: dict[str, Callable[[Path], Any]] = {
        name: functools.partial(write_safetensors, tensors=shard) for name, shard in shards.items()
    }
    if len(shards) > 1:
        shard_of = {tensor: name for name, shard in shards.items() for tensor in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": shard_of}
        files[INDEX_FILE] = functools.partial(write_json, fields=index)
    return files


def _shards(tensors: Mapping[str, PlannedTensor], most: int) -> dict[str, dict[str, PlannedTensor]]:
    """The tensors by file: in their order, with each file filled until the next tensor would exceed `most` bytes."""
    shards: list[dict[str, PlannedTensor]] = []
    size = 0
    for name, tensor in tensors.items():
        if not shards or size + tensor.nbytes > most:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        return {WEIGHTS_FILE: shards[0]}
    return {f"model-{index:05}-of-{len(shards):05}.safetensors": shard for index, shard in enumerate(shards, 1)}
