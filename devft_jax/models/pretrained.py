"""Checkpoints of the LLaMA family in Hugging Face's layout, in and out, without PyTorch.

A folder holds `config.json`, the weights as one `model.safetensors` or as shards listed by
`model.safetensors.index.json`, and the tokenizer's files. Every header is checked against `config.json` before the
first weight is read, so that a wrong or damaged checkpoint costs one sentence and no time. Weights are then streamed:
one tensor at a time is turned from Hugging Face's `[out, in]` into its layer of a preallocated `[L, in, out]` array, packed
on the way where a quantised base is wanted, so that loading needs the memory of the model as it will be plus one tensor.
Only safetensors are read as weights, because a pickle can run code.

Axis letters: L layers, D model width, V vocabulary.
"""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from devft_jax.errors import InputError
from devft_jax.models.families import FAMILIES, config_fields, read_config
from devft_jax.models.files import DTYPES, one_line, open_safetensors, read_json, write_files
from devft_jax.models.llama import PROJECTIONS, Base, Block, ModelConfig, dense_weight
from devft_jax.models.quantization import BITS, QTensor, quantize_projection

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")

PROJECTION_MODULES = {name: f"{'self_attn' if name in ('q', 'k', 'v', 'o') else 'mlp'}.{name}_proj" for name in PROJECTIONS}
"""Where each projection sits inside a Hugging Face decoder layer, such as `self_attn.q_proj`."""

NORM_MODULES = {
    "norm_attention": "input_layernorm",
    "norm_mlp": "post_attention_layernorm",
    "norm_q": "self_attn.q_norm",
    "norm_k": "self_attn.k_norm",
}
"""Where each norm of a block sits inside a Hugging Face decoder layer."""

HEAD = "lm_head.weight"

# Turning a whole matrix at once touches a new cache line with every element.
STRIP_ROWS = 64

# JAX on the CPU takes over host memory that begins on such a boundary instead of copying it.
ALIGNMENT_BYTES = 64


class Model:
    """A pretrained model: its `config`, frozen `base`, `tokenizer`, and the `path` by which it was asked for."""

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
        self._tokenizer = tokenizer

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


def parameter_count(base: Base) -> int:
    """Number of parameters of a base, packed ones counted as weights; a tied head counts once."""
    weights = jax.tree.leaves(base, is_leaf=lambda leaf: isinstance(leaf, QTensor))
    return sum(math.prod(weight.shape) for weight in weights)


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
    return Model(config, Base(blocks=_block(config, on_device), **outside), folder, str(path))


def load_original_blocks(path: str | Path, *, dtype: str | None = None) -> Block:
    """The layers of a model as floats in host memory (numpy), as `load_pretrained` finds them in its files.

    A quantised run whose stages are fused from the original weights reads them so, at every stage.
    """
    folder = model_folder(path)
    config = read_config(folder / CONFIG_FILE)
    leaves = _read_leaves(folder, config, dtype, None)
    return _block(config, {leaf: value for leaf, value in leaves.items() if leaf not in ("embed", "norm", "head")})


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer stored in a model's folder.

    Raises:
      InputError: the folder holds no tokenizer or an unreadable one.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(
            f"the model folder {folder} holds no tokenizer; add the tokenizer.json that the model was trained with."
        )
    # On import transformers advises to install PyTorch, which this package does without.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception on a damaged file
        raise InputError(f"the tokenizer in {folder} cannot be read ({one_line(error)}); restore its files.") from error


def save_pretrained(
    path: str | Path,
    config: ModelConfig,
    base: Base,
    *,
    dtype: str = "bfloat16",
    bos_id: int = 1,
    eos_id: int = 2,
) -> None:
    """Write `config.json` and `model.safetensors`, which transformers and `load_pretrained` read; no tokenizer.

    Older files are replaced only by complete ones, weights first. Weights are gathered in host memory on the way.

    Args:
      path: the folder, made if absent; other files in it stay.
      config: the architecture; the depth and whether the head is tied are taken from `base`.
      base: weights; quantised projections are written dequantised.
      dtype: stored type, "bfloat16", "float32" or "float16".
      bos_id: id of the token that begins a document.
      eos_id: id of the token that ends a document.

    Raises:
      InputError: `dtype` is none of the three.
      RunError: the folder cannot be written.
    """
    stored = _float_dtype(dtype)

    def tensor(leaf: Any) -> np.ndarray:
        return np.asarray(dense_weight(leaf, stored))

    tensors = {"model.embed_tokens.weight": tensor(base.embed)}
    for leaf, (module, turned) in block_tensors(config).items():
        for layer, weight in enumerate(tensor(_leaf(base.blocks, leaf))):
            tensors[f"model.layers.{layer}.{module}"] = weight.T if turned else weight
    tensors["model.norm.weight"] = tensor(base.norm)
    if base.head is not None:
        tensors[HEAD] = tensor(base.head).T

    fields = config_fields(config) | {
        "num_hidden_layers": base.blocks.norm_mlp.shape[0],
        "tie_word_embeddings": base.head is None,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "torch_dtype": dtype,
    }
    write_files(Path(path), (WEIGHTS_FILE, tensors), (CONFIG_FILE, fields))


def _float_dtype(name: str) -> np.dtype:
    if name not in DTYPES.values():
        raise InputError(f"dtype {name!r} is unknown; choose from {', '.join(DTYPES.values())}.")
    return np.dtype(name)


def model_folder(path: str | Path) -> Path:
    """The local folder of a model, downloaded where `path` is a Hugging Face name."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"the model {path} is a file; give the folder that holds its config.json.")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(path)):
        raise InputError(f"the model folder {path} does not exist; give another or a Hugging Face name.")
    from huggingface_hub import snapshot_download

    try:
        # Subfolders hold the same weights in other formats.
        snapshot = snapshot_download(str(path), allow_patterns=["*.safetensors", "*.json"], ignore_patterns=["*/*"])
    except (OSError, ValueError) as error:
        raise InputError(
            f"the model {path} is not a local folder and Hugging Face does not give it "
            f"({one_line(error)}); check the name, the network and, where the model is gated, "
            "that you are logged in."
        ) from error
    return Path(snapshot)


class _Stored(NamedTuple):
    """A tensor as the header of its file describes it."""

    file: Path
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


def _places(config: ModelConfig) -> dict[str, _Place]:
    """Every tensor that a checkpoint of this architecture holds."""
    vocabulary = (config.vocabulary, config.width)
    places = {
        "model.embed_tokens.weight": _Place("embed", None, vocabulary, turned=False),
        "model.norm.weight": _Place("norm", None, (config.width,), turned=False),
    }
    if not config.tied_head:
        places[HEAD] = _Place("head", None, vocabulary, turned=True)
    for leaf, (name, turned) in block_tensors(config).items():
        shape = _leaf_shape(config, leaf)
        for layer in range(config.layers):
            places[f"model.layers.{layer}.{name}"] = _Place(leaf, layer, shape[::-1] if turned else shape, turned)
    return places


def _read_leaves(folder: Path, config: ModelConfig, dtype: str | None, quantization: str | None) -> dict[str, Any]:
    """Stream the tensors of a checkpoint into stacked leaves in host memory, by name; packed projections are `QTensor`s."""
    places = _places(config)
    stored = _stored_tensors(folder)
    _check_tensors(folder, config, places, stored)
    if dtype is None:
        _check_one_dtype(folder, places, stored)
    leaves: dict[str, Any] = {}
    for file, names in _names_by_file(places, stored).items():
        with open_safetensors(file) as tensors:
            for name in names:
                place = places[name]
                # The tensor is given no name here, so that it is freed before the next one is read.
                if quantization is not None and place.leaf in PROJECTIONS:
                    _pack(leaves, place, config.layers, tensors.get_tensor(name), name, quantization)
                    continue
                if place.leaf not in leaves:
                    shape = place.shape[::-1] if place.turned else place.shape
                    layers = () if place.layer is None else (config.layers,)
                    leaves[place.leaf] = _empty((*layers, *shape), dtype or DTYPES[stored[name].dtype])
                leaf = leaves[place.leaf]
                _fill(
                    leaf if place.layer is None else leaf[place.layer],
                    tensors.get_tensor(name),
                    place.turned,
                )
    if config.tied_head and HEAD in stored:
        with open_safetensors(stored[HEAD].file) as tensors:
            head = tensors.get_tensor(HEAD).astype(leaves["embed"].dtype)
        if not np.array_equal(head, leaves["embed"]):
            raise InputError(
                f"tie_word_embeddings is true in {folder / CONFIG_FILE} but the stored {HEAD} "
                "differs from the embedding; set it to false."
            )
    return leaves


def _pack(leaves: dict[str, Any], place: _Place, layers: int, tensor: np.ndarray, name: str, quantization: str) -> None:
    """Quantise one layer of a projection on the host, into its place in the leaf."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
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
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(file, str) for file in shard_of.values()):
        raise InputError(f"{index} holds no weight_map from tensors to files; restore it.")
    stored: dict[str, _Stored] = {}
    for shard in sorted(set(shard_of.values())):
        if not (folder / shard).is_file():
            raise InputError(f"the shard {shard} that {index} names is absent; restore it.")
        header = _header(folder / shard)
        for name, file in shard_of.items():
            if file == shard:
                if name not in header:
                    raise InputError(f"the shard {shard} lacks the tensor {name} that {index} promises; restore it.")
                stored[name] = header[name]
    return stored


def _header(file: Path) -> dict[str, _Stored]:
    with open_safetensors(file) as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        return {name: _Stored(file, tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}


def _check_tensors(
    folder: Path,
    config: ModelConfig,
    places: Mapping[str, _Place],
    stored: Mapping[str, _Stored],
) -> None:
    """Raise `InputError` unless the checkpoint holds exactly the architecture's tensors."""
    title = FAMILIES[config.family].title
    for name, place in places.items():
        if name not in stored:
            remedy = "restore it or set tie_word_embeddings" if name == HEAD else "restore it"
            raise InputError(
                f"the checkpoint in {folder} lacks the tensor {name} of a {title} with "
                f"num_hidden_layers {config.layers}; {remedy}."
            )
        found = stored[name]
        if found.shape != place.shape:
            raise InputError(
                f"the tensor {name} in {found.file} has shape {found.shape} but {CONFIG_FILE} "
                f"implies {place.shape}; correct the config or restore the weights."
            )
        if found.dtype not in DTYPES:
            raise InputError(
                f"the tensor {name} in {found.file} has the type {found.dtype}; give weights in {', '.join(DTYPES)}."
            )
    for name in stored:
        ignored = name.endswith("rotary_emb.inv_freq") or (config.tied_head and name == HEAD)
        if name not in places and not ignored:
            raise InputError(
                f"the checkpoint in {folder} holds the tensor {name}, which a {title} with "
                f"num_hidden_layers {config.layers} does not have; correct the config or choose "
                "another model."
            )


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
    memory = np.empty(size + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[start : start + size].view(dtype).reshape(shape)


def _fill(target: np.ndarray, tensor: np.ndarray, turned: bool) -> None:
    """Copy a tensor into its place in a leaf, converted to the leaf's type."""
    if not turned:
        target[...] = tensor
        return
    for row in range(0, len(tensor), STRIP_ROWS):
        target[:, row : row + STRIP_ROWS] = tensor[row : row + STRIP_ROWS].T
