"""Checkpoints of the LLaMA family in Hugging Face's layout, in and out, without PyTorch.

A folder holds `config.json`, the weights as one `model.safetensors` or as shards listed by
`model.safetensors.index.json`, and the tokenizer's files. Every header is checked against `config.json` before the
first weight is read, so that a wrong or damaged checkpoint costs one sentence and no time. Weights are then streamed:
one tensor at a time is turned from Hugging Face's `[out, in]` into its layer of a preallocated `[L, in, out]` array, packed
on the way where a quantised base is wanted, so that loading needs the memory of the model as it will be plus one tensor.
Only safetensors are read as weights, because a pickle can run code. Saving streams too: a tensor is made, merged with its
adapter where one is given, and written before the next, in as many files as their size asks for.

Axis letters: L layers, D model width, V vocabulary.
"""

import functools
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from devft_jax.errors import InputError, RunError
from devft_jax.files import printable
from devft_jax.models.adapter import Adapter, layer_scales
from devft_jax.models.architecture import ARCHITECTURES, PROJECTIONS, ModelConfig
from devft_jax.models.base import Base, Block
from devft_jax.models.huggingface.families import FAMILIES, config_fields, read_config
from devft_jax.models.huggingface.names import (
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    check_inside,
    model_folder,
    named_from_anywhere,
    read_index,
)
from devft_jax.models.huggingface.safetensors import (
    DTYPES,
    PlannedTensor,
    one_line,
    open_safetensors,
    read_json,
    replace_files,
    write_json,
    write_safetensors,
)
from devft_jax.models.huggingface.sentencepiece import MODEL_FILE, read_sentencepiece
from devft_jax.models.quantization import BITS, QTensor, quantize_projection
from devft_jax.models.weights import dense_weight
from devft_jax.runtime.devices import host_device

GENERATION_CONFIG_FILE = "generation_config.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", TOKENIZER_CONFIG_FILE)

COMPANION_FILES = (
    *TOKENIZER_FILES,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    GENERATION_CONFIG_FILE,
)
"""Files that travel with a model's weights into a folder made from it."""

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

WEIGHT_FILES = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
"""Names of the files that hold a model's weights in safetensors, and of their index."""

MAX_SHARD_BYTES = 5_000_000_000

PROJECTION_MODULES = {name: f"{'self_attn' if name in ('q', 'k', 'v', 'o') else 'mlp'}.{name}_proj" for name in PROJECTIONS}
"""Where each projection sits inside a Hugging Face decoder layer, such as `self_attn.q_proj`."""

NORM_MODULES = {
    "norm_attention": "input_layernorm",
    "norm_mlp": "post_attention_layernorm",
    "norm_q": "self_attn.q_norm",
    "norm_k": "self_attn.k_norm",
}
"""Where each norm of a block sits inside a Hugging Face decoder layer."""

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

# Turning a whole matrix at once touches a new cache line with every element.
STRIP_ROWS = 64

# JAX on the CPU takes over host memory that begins on such a boundary instead of copying it.
ALIGNMENT_BYTES = 64


class Model:
    """A pretrained model: its `config`, frozen `base`, `tokenizer`, and the `path` by which it was asked for.

    `folder` is where its files lie, None where it was put together from objects.
    """

    def __init__(self, config: ModelConfig, base: Base, tokenizer: Any = None, path: str | None = None) -> None:
        """Put a model together.

        Args:
          config: the architecture.
          base: its weights.
          tokenizer: a Hugging Face tokenizer, or the folder that holds its files; it is then read when first used,
            because work on weights alone needs none and its library takes a second to import.
          path: the folder or Hugging Face name that an exported adapter gives as its base; None where there is none.
        """
        self.config = config
        self.base = base
        self.path = path
        self.folder = tokenizer if isinstance(tokenizer, Path) else None
        self._tokenizer = tokenizer

    def with_base(self, base: Base) -> "Model":
        """The same model with other weights."""
        return Model(self.config, base, self.folder or self._tokenizer, self.path)

    @property
    def has_tokenizer(self) -> bool:
        """Whether it came with one, read or not."""
        return self._tokenizer is not None

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer.

        Raises:
          InputError: the model came without one, or its files cannot be read.
        """
        if self._tokenizer is None:
            raise InputError("the model has no tokenizer; give Model one when building it.")
        if isinstance(self._tokenizer, Path):
            self._tokenizer = load_tokenizer(self._tokenizer)
        return self._tokenizer


def load_pretrained(path: str | Path, *, quantization: str | None = None, dtype: str | None = None) -> Model:
    """Read a model of the LLaMA family from a local folder or by its Hugging Face name.

    Args:
      path: a folder in Hugging Face's layout, or a name such as `meta-llama/Llama-2-7b-hf`, whose safetensors and JSON
        files are downloaded once into the Hugging Face cache.
      quantization: "int8", "int4" or "nf4" to pack every projection as it is read (`devft_jax.models.quantization`);
        None or "none" keeps floats.
      dtype: "float32", "bfloat16" or "float16" to convert every weight that stays a float; None keeps the stored type.

    Returns:
      The model, its weights on the default device.

    Raises:
      InputError: the model cannot be had, is damaged, disagrees with its config.json, or is none that this package
        computes exactly.
    """
    if quantization is not None and quantization not in ("none", *BITS):
        raise InputError(f"quantization {quantization!r} is unknown; choose from none, {', '.join(BITS)}.")
    if dtype is not None:
        _float_dtype(dtype)
    folder = model_folder(path)
    config = read_config(folder / CONFIG_FILE)
    leaves = _read_leaves(folder, config, dtype, None if quantization == "none" else quantization)
    on_device = {leaf: jax.device_put(leaves.pop(leaf)) for leaf in list(leaves)}
    outside = {leaf: on_device.pop(leaf, None) for leaf in ("embed", "norm", "head")}
    return Model(config, Base(blocks=_block(config, on_device), **outside), folder, named_from_anywhere(str(path)))


def load_original_blocks(path: str | Path, *, dtype: str | None = None) -> Block:
    """The layers of a model as floats in host memory (numpy), as `load_pretrained` finds them in its files.

    A quantised run whose stages are fused from the original weights reads them so, at every stage.
    """
    folder = model_folder(path)
    config = read_config(folder / CONFIG_FILE)
    leaves = _read_leaves(folder, config, dtype, None)
    return _block(config, {leaf: value for leaf, value in leaves.items() if leaf not in ("embed", "norm", "head")})


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer stored in a model's folder; `tokenizer.model` alone needs the extra `sentencepiece`.

    Raises:
      InputError: the folder holds no tokenizer, an unreadable one, or one of a form that is not read.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(
            f"the model folder {folder} holds no tokenizer; add the tokenizer.json that the model was trained with."
        )
    check_inside(folder)
    # On import transformers advises to install PyTorch, which this package does without.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if (folder / MODEL_FILE).is_file() and not (folder / "tokenizer.json").is_file():
        # transformers reads these too, but numbers some texts otherwise than the original does.
        return read_sentencepiece(folder)
    settings = read_json(folder / TOKENIZER_CONFIG_FILE) if (folder / TOKENIZER_CONFIG_FILE).is_file() else {}
    _check_named_files(settings, folder / TOKENIZER_CONFIG_FILE)
    from transformers import AutoTokenizer

    try:
        # Said, not left out: transformers would else ask on standard input whether to run what a folder brings along.
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception on a damaged file
        if "auto_map" in settings:
            raise InputError(
                f"{folder / TOKENIZER_CONFIG_FILE} asks for a tokenizer of its own code (auto_map), and no code from "
                "a model's folder is ever run; give a tokenizer.json, and a tokenizer_config.json without auto_map and "
                "with a tokenizer_class of transformers."
            ) from error
        raise InputError(f"the tokenizer in {folder} cannot be read ({one_line(error)}); restore its files.") from error


def _check_named_files(settings: Mapping[str, Any], path: Path) -> None:
    """Raise `InputError` where a tokenizer's settings name a file outside their folder, which transformers would read."""
    names = settings.get("fast_tokenizer_files") or []
    if not isinstance(names, list) or not all(isinstance(name, str) and re.fullmatch(r"[\w.+-]+", name) for name in names):
        raise InputError(
            f"fast_tokenizer_files {printable(repr(names)[:120])} in {path} are no names of files beside it; nothing "
            "outside the model's folder is read: correct them."
        )


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

    Weights are made and written one tensor at a time. Older weights and config.json are replaced, whatever their number of
    files, once all new files are complete; config.json comes last, so that a folder left half replaced does not load.

    Args:
      path: the folder, made if absent; files that are not part of a model stay.
      config: the architecture; the depth and whether the head is tied are taken from `base`.
      base: weights; quantised projections are written dequantised.
      adapter: merged into the projections, W + scale * a @ b in float32 of every layer. Quantised projections are
        dequantised for it, so that the merged model is what the adapter computes beside them. Layers that it leaves
        unchanged keep their bits.
      dtype: stored type, "bfloat16", "float32" or "float16"; "auto" keeps every weight's own, and writes dequantised ones in
        the embedding's; or the type of each leaf by name, as `stored_dtypes` gives it.
      source: folder of the model that the weights come from. Its tokenizer's and generation settings' files are copied,
        in place of older ones, and config.json gets the ids of its special tokens.
      bos_id: id of the token that begins a document; None takes the source's, and without one writes none.
      eos_id: id of the token that ends a document, as `bos_id`.
      answer_ends: ids at which generation is to stop; generation_config.json gets them besides the source's own.
      max_shard_bytes: a file of weights gets no larger, unless one tensor is; several files are listed by an index.

    Returns:
      Bytes of the weights.

    Raises:
      InputError: `dtype` is none of these, `max_shard_bytes` is not positive, the adapter does not fit the base, or
        the source's config.json or tokenizer cannot be read.
      RunError: the folder cannot be written, or a merged weight is NaN or infinite.
    """
    dtypes = _dtypes_to_write(base, dtype)
    if max_shard_bytes < 1:
        raise InputError(f"max_shard_bytes {max_shard_bytes} is not positive; use {MAX_SHARD_BYTES} as Hugging Face does.")
    depth = base.blocks.norm_mlp.shape[0]
    if adapter is not None:
        _check_adapter(config, adapter, depth)
    given = {"bos_token_id": bos_id, "eos_token_id": eos_id}
    ids = ({} if source is None else _special_ids(Path(source))) | {
        name: value for name, value in given.items() if value is not None
    }
    fields = config_fields(config) | {
        "num_hidden_layers": depth,
        "tie_word_embeddings": base.head is None,
        **ids,
        "torch_dtype": dtypes["embed"],
    }
    tensors = _planned_tensors(config, base, adapter, dtypes)
    shards = _shards(tensors, max_shard_bytes)
    total = sum(tensor.nbytes for tensor in tensors.values())

    folder = Path(path).expanduser()
    files: dict[str, Callable[[Path], Any]] = {
        name: functools.partial(write_safetensors, tensors=shard) for name, shard in shards.items()
    }
    if len(shards) > 1:
        shard_of = {tensor: name for name, shard in shards.items() for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": shard_of}
        files[INDEX_FILE] = functools.partial(write_json, fields=index)
    copied = source is not None and Path(source).expanduser().resolve() != folder.resolve()
    if copied:
        for name in COMPANION_FILES:
            file = Path(source or "").expanduser() / name
            if file.is_file():
                files[name] = functools.partial(shutil.copyfile, file)
    settings = _generation_settings(None if source is None else Path(source).expanduser(), ids, answer_ends)
    if settings is not None:
        files[GENERATION_CONFIG_FILE] = functools.partial(write_json, fields=settings)
    files[CONFIG_FILE] = functools.partial(write_json, fields=fields)

    def stale(name: str) -> bool:
        return WEIGHT_FILES.fullmatch(name) is not None or (copied and name in COMPANION_FILES)

    replace_files(folder, files, key_file=CONFIG_FILE, stale=stale)
    return total


def _generation_settings(source: Path | None, ids: Mapping[str, Any], answer_ends: Sequence[int]) -> dict[str, Any] | None:
    """What generation_config.json is to say so that generation stops at `answer_ends`, too; None where it says so already.

    Args:
      ids: of the special tokens, which hold where the source has no such file.
    """
    file = None if source is None else source / GENERATION_CONFIG_FILE
    own = read_json(file) if file is not None and file.is_file() else {}
    fields = {name: value for name, value in ids.items() if own.get(name) is None} | own
    present = eos_ids_of(fields, file or Path(CONFIG_FILE))
    wanted = list(dict.fromkeys([*present, *answer_ends]))
    return None if wanted == present else fields | {"eos_token_id": wanted}


def eos_ids_of(fields: Mapping[str, Any], path: Path) -> list[int]:
    """The ids of `eos_token_id`, one or a list, in a config.json or generation_config.json; empty where it has none.

    Raises:
      InputError: they are no token ids.
    """
    value = fields.get("eos_token_id")
    found = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(item) is int and 0 <= item < 2**31 for item in found):
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        raise InputError(f"eos_token_id {shown} in {path} is neither a token id nor a list of them; correct it.")
    return list(dict.fromkeys(found))


def _dtypes_to_write(base: Base, dtype: str | Mapping[str, str]) -> dict[str, str]:
    """The type in which each leaf is written, by the names of `block_tensors` and `embed`, `norm` and `head`."""
    leaves = {"embed": base.embed, "norm": base.norm, "head": base.head}
    leaves |= {name: getattr(base.blocks, name) for name in (*PROJECTIONS, *NORM_MODULES)}
    leaves |= {f"{BIAS}{name}": bias for name, bias in base.blocks.bias.items()}
    floats = np.dtype(base.embed.dtype).name
    own = {
        name: floats if isinstance(leaf, QTensor) else np.dtype(leaf.dtype).name
        for name, leaf in leaves.items()
        if leaf is not None
    }
    given = {} if dtype == "auto" else dict.fromkeys(own, dtype) if isinstance(dtype, str) else dtype
    found = own | {name: given[name] for name in own if name in given}
    for name in found.values():
        _float_dtype(name)
    return found


def stored_dtypes(folder: Path) -> dict[str, str]:
    """The type in which each leaf of a model's folder is stored, by name, from the headers of its files."""
    stored = _stored_tensors(folder)
    places = _checked_places(folder, read_config(folder / CONFIG_FILE), stored)
    return {place.leaf: DTYPES[stored[name].dtype] for name, place in reversed(places.items())}


def _planned_tensors(
    config: ModelConfig, base: Base, adapter: Adapter | None, dtypes: Mapping[str, str]
) -> dict[str, PlannedTensor]:
    """Every tensor of a checkpoint in Hugging Face's names and shapes, not yet made; `dtypes` by leaf."""
    depth = base.blocks.norm_mlp.shape[0]
    scales = {} if adapter is None else layer_scales(adapter, depth)

    def outside(leaf: str, weight: jax.Array, turned: bool = False) -> PlannedTensor:
        shape = weight.shape[::-1] if turned else weight.shape

        def make() -> np.ndarray:
            array = np.asarray(dense_weight(weight, np.dtype(dtypes[leaf])))
            _warn_unless_finite(leaf, array)
            return array.T if turned else array

        return PlannedTensor(shape, dtypes[leaf], make)

    def within(leaf: str, layer: int, name: str, turned: bool) -> PlannedTensor:
        stack = _leaf(base.blocks, leaf)
        shape = stack.shape[1:]

        def make() -> np.ndarray:
            weight = jax.tree.map(lambda part: part[layer], stack)
            if adapter is not None and leaf in adapter.lora:
                array = merged(leaf, layer, name, weight)
            else:
                array = np.asarray(dense_weight(weight, np.dtype(dtypes[leaf])))
                _warn_unless_finite(name, array)
            return array.T if turned else array

        return PlannedTensor(shape[::-1] if turned else shape, dtypes[leaf], make)

    def merged(leaf: str, layer: int, name: str, weight: Any) -> np.ndarray:
        assert adapter is not None
        factors = adapter.lora[leaf]
        a, b = (np.asarray(part[layer], np.float32) for part in (factors.a, factors.b))
        dense = np.asarray(dense_weight(weight, np.dtype(np.float32)))
        update = np.float32(scales[leaf][layer]) * (a @ b)
        # Adding zero would turn -0.0 into 0.0.
        with np.errstate(over="ignore", invalid="ignore"):
            array = np.where(update == 0, dense, dense + update).astype(dtypes[leaf])
        if not np.isfinite(array).all():
            part = "the adapter's" if not np.isfinite(update).all() else "the base's"
            part = "the merged" if np.isfinite(update).all() and np.isfinite(dense).all() else part
            raise RunError(
                f"{name} (layer {layer}, counted from 0) cannot be merged: {part} weights hold NaN or infinite values in "
                f"{dtypes[leaf]}; nothing was written: give whole weights, or dtype float32 where the type is too small."
            )
        return array

    tensors = {EMBEDDING: outside("embed", base.embed)}
    for layer in range(depth):
        for leaf, (module, turned) in block_tensors(config).items():
            name = f"model.layers.{layer}.{module}"
            tensors[name] = within(leaf, layer, name, turned)
    tensors["model.norm.weight"] = outside("norm", base.norm)
    if base.head is not None:
        tensors[HEAD] = outside("head", base.head, turned=True)
    return tensors


def _warn_unless_finite(name: str, weights: np.ndarray) -> None:
    if not np.isfinite(weights).all():
        warnings.warn(f"{name} holds NaN or infinite values in {weights.dtype.name} and is written so.", stacklevel=2)


def _shards(tensors: Mapping[str, PlannedTensor], most: int) -> dict[str, dict[str, PlannedTensor]]:
    """The tensors by file: in their order, each file filled until the next tensor would exceed `most` bytes."""
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


def _check_adapter(config: ModelConfig, adapter: Adapter, depth: int) -> None:
    """Raise `InputError` unless the adapter's factors have the shapes of a base of this depth."""
    if adapter.hyper is not None:
        raise InputError(
            "an adapter that a hypernetwork makes changes no weight that it could be merged into; leave it out."
        )
    for name, factors in adapter.lora.items():
        fan_in, fan_out = config.projection_shape(name)
        rank = factors.a.shape[-1]
        if factors.a.shape != (depth, fan_in, rank) or factors.b.shape != (depth, rank, fan_out):
            raise InputError(
                f"the adapter's factors of {name}_proj have the shapes {factors.a.shape} and {factors.b.shape} but the base "
                f"of {depth} layers needs {(depth, fan_in, rank)} and {(depth, rank, fan_out)}; merge an adapter of this "
                "base."
            )


def _special_ids(source: Path) -> dict[str, Any]:
    """Ids of the special tokens as the source's config.json gives them, or else its tokenizer."""
    source = source.expanduser()
    fields = read_json(source / CONFIG_FILE)
    ids = {name: fields[name] for name in SPECIAL_IDS if fields.get(name) is not None}
    missing = [name for name in SPECIAL_IDS[:2] if name not in ids]
    if missing and any((source / name).is_file() for name in TOKENIZER_FILES):
        tokenizer = load_tokenizer(source)
        found = {name: getattr(tokenizer, name) for name in missing}
        ids |= {name: value for name, value in found.items() if value is not None}
    return ids


def _float_dtype(name: str) -> np.dtype:
    if name not in DTYPES.values():
        raise InputError(f"dtype {name!r} is unknown; choose from {', '.join(DTYPES.values())}.")
    return np.dtype(name)


def model_architecture(path: str | Path) -> ModelConfig:
    """The architecture of a model without its weights.

    Args:
      path: a folder that holds a config.json, a name in `ARCHITECTURES`, which needs no network, or any other Hugging Face
        name, whose config.json alone is downloaded.

    Raises:
      InputError: the config.json cannot be had, or describes a model that this package does not compute exactly.
    """
    if str(path) in ARCHITECTURES and not Path(path).exists():
        return ARCHITECTURES[str(path)]
    return read_config(model_folder(path, weights=False) / CONFIG_FILE)


class _Stored(NamedTuple):
    """A tensor as the header of its file describes it; `name` is the one it has there."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


class _Place(NamedTuple):
    """Where a tensor belongs: its leaf, its layer there (None for a leaf without layers), and its shape in the file.

    `turned` tells that the leaf holds it transposed.
    """

    leaf: str
    layer: int | None
    shape: tuple[int, ...]
    turned: bool


BIAS = "bias_"
"""Before a projection's name, the name of its bias as a leaf."""


def block_tensors(config: ModelConfig) -> dict[str, tuple[str, bool]]:
    """For every leaf of an architecture's blocks, its tensor's name within a layer and whether that is stored transposed."""
    tensors = {leaf: (f"{module}.weight", True) for leaf, module in PROJECTION_MODULES.items()}
    tensors |= {f"{BIAS}{leaf}": (f"{PROJECTION_MODULES[leaf]}.bias", False) for leaf in config.biases}
    norms = NORM_MODULES if config.qk_norm else {leaf: NORM_MODULES[leaf] for leaf in ("norm_attention", "norm_mlp")}
    return tensors | {leaf: (f"{module}.weight", False) for leaf, module in norms.items()}


def _leaf_shape(config: ModelConfig, leaf: str) -> tuple[int, ...]:
    """Shape of one layer of a leaf, as a `Block` holds it."""
    if leaf in PROJECTIONS:
        return config.projection_shape(leaf)
    if leaf.startswith(BIAS):
        return config.projection_shape(leaf.removeprefix(BIAS))[1:]
    return (config.head_size,) if leaf in ("norm_q", "norm_k") else (config.width,)


def _leaf(blocks: Block, leaf: str) -> Any:
    """The leaf that `block_tensors` names."""
    return blocks.bias[leaf.removeprefix(BIAS)] if leaf.startswith(BIAS) else getattr(blocks, leaf)


def _block(config: ModelConfig, leaves: Mapping[str, Any]) -> Block:
    """The blocks of the leaves that `block_tensors` names."""
    plain = {leaf: value for leaf, value in leaves.items() if not leaf.startswith(BIAS)}
    return Block(**plain, bias={name: leaves[f"{BIAS}{name}"] for name in config.biases})


def _places(config: ModelConfig) -> Iterator[tuple[str, _Place]]:
    """Every tensor that a checkpoint of this architecture holds, layer by layer: the first missing one is soon met."""
    vocabulary = (config.vocabulary, config.width)
    yield EMBEDDING, _Place("embed", None, vocabulary, turned=False)
    yield "model.norm.weight", _Place("norm", None, (config.width,), turned=False)
    if not config.tied_head:
        yield HEAD, _Place("head", None, vocabulary, turned=True)
    tensors = block_tensors(config)
    shapes = {leaf: _leaf_shape(config, leaf) for leaf in tensors}
    for layer in range(config.layers):
        for leaf, (name, turned) in tensors.items():
            shape = shapes[leaf]
            yield f"model.layers.{layer}.{name}", _Place(leaf, layer, shape[::-1] if turned else shape, turned)


def _read_leaves(folder: Path, config: ModelConfig, dtype: str | None, quantization: str | None) -> dict[str, Any]:
    """Stream the tensors of a checkpoint into stacked leaves in host memory, by name; packed projections are `QTensor`s."""
    stored = _stored_tensors(folder)
    places = _checked_places(folder, config, stored)
    if dtype is None:
        _check_one_dtype(folder, places, stored)
    leaves: dict[str, Any] = {}
    for file, names in _names_by_file(places, stored).items():
        with open_safetensors(file) as tensors:
            for name in names:
                place, own_name = places[name], stored[name].name
                # The tensor is given no name here, so that it is freed before the next one is read.
                if quantization is not None and place.leaf in PROJECTIONS:
                    _pack(leaves, place, config.layers, tensors.get_tensor(own_name), name, quantization)
                    continue
                if place.leaf not in leaves:
                    shape = place.shape[::-1] if place.turned else place.shape
                    layers = () if place.layer is None else (config.layers,)
                    leaves[place.leaf] = _empty((*layers, *shape), dtype or DTYPES[stored[name].dtype])
                leaf = leaves[place.leaf]
                _fill(
                    leaf if place.layer is None else leaf[place.layer],
                    tensors.get_tensor(own_name),
                    place.turned,
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


def _pack(leaves: dict[str, Any], place: _Place, layers: int, tensor: np.ndarray, name: str, quantization: str) -> None:
    """Quantise one layer of a projection on the host, into its place in the leaf."""
    with jax.default_device(host_device()):
        packed = quantize_projection(name, tensor.T, quantization)
    if place.leaf not in leaves:
        code, scale = (_empty((layers, *part.shape), part.dtype.name) for part in (packed.code, packed.scale))
        leaves[place.leaf] = QTensor(code, scale, quantization)
    leaf = leaves[place.leaf]
    leaf.code[place.layer] = packed.code
    leaf.scale[place.layer] = packed.scale


def _names_by_file(places: Mapping[str, _Place], stored: Mapping[str, _Stored]) -> dict[Path, list[str]]:
    names: dict[Path, list[str]] = {}
    for name in places:
        names.setdefault(stored[name].file, []).append(name)
    return names


def _stored_tensors(folder: Path) -> dict[str, _Stored]:
    """The headers of a checkpoint's files."""
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
    stored: dict[str, _Stored] = {}
    names_of: dict[str, list[str]] = {}
    for name, shard in shard_of.items():
        names_of.setdefault(shard, []).append(name)
    for shard, names in sorted(names_of.items()):
        if not (folder / shard).is_file():
            raise InputError(f"the shard {shard} that {index} names is absent; restore it.")
        header = _header(folder / shard)
        for name in names:
            found = header.get(_full_name(name))
            if found is None or found.name != name:
                raise InputError(f"the shard {shard} lacks the tensor {printable(name)} that {index} promises; restore it.")
            if (twin := stored.get(found_as := _full_name(name))) is not None:
                raise InputError(f"{index} names both {twin.name} and {name}, which are one tensor; remove one.")
            stored[found_as] = found
    return stored


def _header(file: Path) -> dict[str, _Stored]:
    """What a file holds, by the names that its tensors have in a whole model."""
    with open_safetensors(file) as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        found: dict[str, _Stored] = {}
        for name, part in slices.items():
            full = _full_name(name)
            if full in found:
                raise InputError(f"{file} holds both {found[full].name} and {name}, which are one tensor; remove one.")
            found[full] = _Stored(file, name, tuple(part.get_shape()), part.get_dtype())
        return found


def _full_name(name: str) -> str:
    """A tensor's name in a model with a head; one that was saved without its head has no `model.` before each."""
    bare = name.removeprefix("model.")
    return bare if bare == HEAD else f"model.{bare}"


def _checked_places(folder: Path, config: ModelConfig, stored: dict[str, _Stored]) -> dict[str, _Place]:
    """Where every tensor belongs; the headers tell before anything of config.json's sizes is allocated.

    A tied embedding may be stored under the head's name alone: `stored` then gets it under its own.

    Raises:
      InputError: the checkpoint does not hold exactly the architecture's tensors.
    """
    title = FAMILIES[config.family].title
    if config.tied_head and HEAD in stored:
        stored.setdefault(EMBEDDING, stored[HEAD])
    places: dict[str, _Place] = {}
    for name, place in _places(config):
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
        places[name] = place
    for name, found in stored.items():
        ignored = name.endswith("rotary_emb.inv_freq") or (config.tied_head and name == HEAD)
        if name not in places and not ignored:
            raise InputError(
                f"the checkpoint in {folder} holds the tensor {printable(found.name)}, which a {title} with "
                f"num_hidden_layers {config.layers} does not have; correct the config or choose "
                "another model."
            )
    return places


def _check_one_dtype(folder: Path, places: Mapping[str, _Place], stored: Mapping[str, _Stored]) -> None:
    """Raise `InputError` where the layers of one leaf are stored in different types."""
    types: dict[str, str] = {}
    for name, place in places.items():
        first = types.setdefault(place.leaf, stored[name].dtype)
        if stored[name].dtype != first:
            raise InputError(
                f"the tensor {name} in {folder} has the type {stored[name].dtype} where earlier "
                f"layers have {first}; give dtype, such as bfloat16, to convert all."
            )


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


def _fill(target: np.ndarray, tensor: np.ndarray, turned: bool) -> None:
    """Copy a tensor into its place in a leaf, converted to the leaf's type."""
    if not turned:
        target[...] = tensor
        return
    for row in range(0, len(tensor), STRIP_ROWS):
        target[:, row : row + STRIP_ROWS] = tensor[row : row + STRIP_ROWS].T
