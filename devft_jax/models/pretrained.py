"""LLaMA checkpoints in Hugging Face's layout, in and out, without PyTorch.

A folder holds `config.json`, the weights as one `model.safetensors` or as shards listed by
`model.safetensors.index.json`, and the tokenizer's files. Every header is checked against `config.json` before the
first weight is read, so that a wrong or damaged checkpoint costs one sentence and no time. Weights are then streamed:
one tensor at a time is turned from Hugging Face's `[out, in]` into its layer of a preallocated `[L, in, out]` array, so
that loading needs the memory of the model plus one tensor. Only safetensors are read as weights, because a pickle can
run code.

Axis letters: L layers, D model width, V vocabulary.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from devft_jax.errors import InputError, RunError
from devft_jax.models.llama import (
    PROJECTIONS,
    Base,
    Block,
    ModelConfig,
    RopeScaling,
    dense_weight,
)
from devft_jax.models.sentencepiece_model import MODEL_FILE, read_sentencepiece

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")

PROJECTION_MODULES = {name: f"{'self_attn' if name in ('q', 'k', 'v', 'o') else 'mlp'}.{name}_proj" for name in PROJECTIONS}
"""Where each projection sits inside a Hugging Face decoder layer, such as `self_attn.q_proj`."""

NORM_MODULES = {"norm_attention": "input_layernorm", "norm_mlp": "post_attention_layernorm"}
"""Where each norm of a block sits inside a Hugging Face decoder layer."""

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Weight types that are read and written, by the name that safetensors gives them."""

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
    """Number of parameters of a float base; a tied head counts once."""
    return sum(leaf.size for leaf in jax.tree.leaves(base))


def load_pretrained(path: str | Path, *, quantization: str | None = None, dtype: str | None = None) -> Model:
    """Read a LLaMA from a local folder or by its Hugging Face name.

    Args:
      path: a folder in Hugging Face's layout, or a name such as `meta-llama/Llama-2-7b-hf`, whose safetensors and JSON
        files are downloaded once into the Hugging Face cache.
      quantization: None, which keeps float weights.
      dtype: "float32", "bfloat16" or "float16" to convert every weight; None keeps the stored type.

    Returns:
      The model, its weights on the default device.

    Raises:
      InputError: the model cannot be had, is damaged, disagrees with its config.json, or is not a LLaMA that this
        package computes exactly.
    """
    if quantization is not None:
        raise InputError(
            f"quantization {quantization!r} is not supported by this version; only None is, which keeps float weights."
        )
    if dtype is not None:
        _float_dtype(dtype)
    folder = _model_folder(path)
    config = read_config(folder / CONFIG_FILE)
    return Model(config, _read_base(folder, config, dtype), folder, str(path))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer stored in a model's folder; `tokenizer.model` alone needs the extra `sentencepiece`.

    Raises:
      InputError: the folder holds no tokenizer, an unreadable one, or one of a form that is not read.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(
            f"the model folder {folder} holds no tokenizer; add the tokenizer.json that the model was trained with."
        )
    # On import transformers advises to install PyTorch, which this package does without.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if (folder / MODEL_FILE).is_file() and not (folder / "tokenizer.json").is_file():
        # transformers reads these too, but numbers some texts otherwise than the original does.
        return read_sentencepiece(folder)
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
    for leaf, module in (PROJECTION_MODULES | NORM_MODULES).items():
        for layer, weight in enumerate(tensor(getattr(base.blocks, leaf))):
            tensors[f"model.layers.{layer}.{module}.weight"] = weight.T
    tensors["model.norm.weight"] = tensor(base.norm)
    if base.head is not None:
        tensors[HEAD] = tensor(base.head).T

    fields = _config_fields(config) | {
        "num_hidden_layers": base.blocks.norm_mlp.shape[0],
        "tie_word_embeddings": base.head is None,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "torch_dtype": dtype,
    }
    write_files(Path(path), (WEIGHTS_FILE, tensors), (CONFIG_FILE, fields))


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


def _config_fields(config: ModelConfig) -> dict[str, Any]:
    """An architecture as `config.json` has it, in the layout that transformers 4 and 5 both read."""
    scaling = config.rope_scaling
    rope_scaling: dict[str, Any] | None = None
    if scaling is not None:
        rope_scaling = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope_scaling |= {
                "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
                "original_max_position_embeddings": scaling.original_length,
            }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.feed_forward,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope_scaling,
        "attention_bias": False,
        "mlp_bias": False,
    }


def read_config(path: Path) -> ModelConfig:
    """The architecture that a `config.json` describes; absent optional fields have Hugging Face's defaults.

    Raises:
      InputError: the file cannot be read, or describes anything but a LLaMA that this package computes exactly.
    """
    fields = read_json(path)
    _refuse_other_architectures(fields, path)

    def count(name: str, default: int | None = None) -> int:
        return int(_positive(fields, name, path, default=default, whole=True))

    width, heads = count("hidden_size"), count("num_attention_heads")
    kv_heads = count("num_key_value_heads", heads)
    if heads % kv_heads:
        raise InputError(
            f"num_key_value_heads {kv_heads} in {path} does not divide num_attention_heads {heads}; correct the config."
        )
    if fields.get("head_dim") is None and width % heads:
        raise InputError(
            f"hidden_size {width} in {path} is not a multiple of num_attention_heads {heads}; "
            "correct the config or add head_dim."
        )
    head_size = count("head_dim", width // heads)
    if head_size % 2:
        raise InputError(f"head_dim {head_size} in {path} is odd, which rotary positions cannot pair; correct the config.")
    rope_theta, rope_scaling = _rope(fields, path)
    return ModelConfig(
        vocabulary=count("vocab_size"),
        width=width,
        feed_forward=count("intermediate_size"),
        layers=count("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        norm_epsilon=_positive(fields, "rms_norm_eps", path, default=1e-6),
        tied_head=fields.get("tie_word_embeddings") or False,
        max_length=count("max_position_embeddings", 2048),
    )


def _refuse_other_architectures(fields: Mapping[str, Any], path: Path) -> None:
    """Raise `InputError` for what would be computed wrongly; an absent or null field has its usual value."""
    accepted: dict[str, tuple[Any, ...]] = {
        "model_type": ("llama",),
        "hidden_act": ("silu", None),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "tie_word_embeddings": (False, True, None),
        "quantization_config": (None,),
    }
    for name, values in accepted.items():
        if fields.get(name) not in values:
            wanted = " or ".join(json.dumps(value) for value in values if value is not None)
            raise InputError(
                f"{name} {json.dumps(fields.get(name))} in {path} is not supported; choose a LLaMA "
                f"model where it is {wanted or 'absent'}."
            )


def _rope(fields: Mapping[str, Any], path: Path) -> tuple[float, RopeScaling | None]:
    """Base and scaling of the rotary positions.

    Up to transformers 4 they are the number `rope_theta` and the object `rope_scaling`; from 5 on both lie in the
    object `rope_parameters`. Where all are present, transformers 5 prefers `rope_scaling`, and so does this.
    """
    rope = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise InputError(f"rope_scaling {json.dumps(rope)} in {path} is not an object; correct the config.")
    theta = _positive(fields, "rope_theta", path, default=10_000.0)
    theta = _positive(rope, "rope_theta", path, default=theta)
    rotated = _positive(fields, "partial_rotary_factor", path, default=1.0)
    rotated = _positive(rope, "partial_rotary_factor", path, default=rotated)
    if rotated != 1.0:
        raise InputError(
            f"partial_rotary_factor {rotated} in {path} is not supported; choose a LLaMA model where it is 1.0 or absent."
        )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", _positive(rope, "factor", path))
    if kind == "llama3":
        return theta, RopeScaling(
            "llama3",
            _positive(rope, "factor", path),
            low_frequency_factor=_positive(rope, "low_freq_factor", path),
            high_frequency_factor=_positive(rope, "high_freq_factor", path),
            original_length=int(_positive(rope, "original_max_position_embeddings", path, whole=True)),
        )
    raise InputError(
        f"rope_type {json.dumps(kind)} in {path} is not supported; choose a LLaMA model where it is "
        '"default", "linear" or "llama3".'
    )


def _positive(
    fields: Mapping[str, Any],
    name: str,
    path: Path,
    *,
    default: float | None = None,
    whole: bool = False,
) -> float:
    """A positive number of a config; `default` stands in where the field is absent or null."""
    value = fields.get(name)
    value = default if value is None else value
    if value is None:
        raise InputError(f"{name} is missing from {path}; add it.")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf or (whole and value % 1):
        raise InputError(
            f"{name} {json.dumps(value)} in {path} is not a positive {'whole ' * whole}number; correct the config."
        )
    return value


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


def _float_dtype(name: str) -> np.dtype:
    if name not in DTYPES.values():
        raise InputError(f"dtype {name!r} is unknown; choose from {', '.join(DTYPES.values())}.")
    return np.dtype(name)


def _model_folder(path: str | Path) -> Path:
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


def _places(config: ModelConfig) -> dict[str, _Place]:
    """Every tensor that a checkpoint of this architecture holds."""
    vocabulary = (config.vocabulary, config.width)
    places = {
        "model.embed_tokens.weight": _Place("embed", None, vocabulary, turned=False),
        "model.norm.weight": _Place("norm", None, (config.width,), turned=False),
    }
    if not config.tied_head:
        places[HEAD] = _Place("head", None, vocabulary, turned=True)
    for layer in range(config.layers):
        for leaf, module in PROJECTION_MODULES.items():
            shape = config.projection_shape(leaf)[::-1]
            places[f"model.layers.{layer}.{module}.weight"] = _Place(leaf, layer, shape, turned=True)
        for leaf, module in NORM_MODULES.items():
            places[f"model.layers.{layer}.{module}.weight"] = _Place(leaf, layer, (config.width,), turned=False)
    return places


def _read_base(folder: Path, config: ModelConfig, dtype: str | None) -> Base:
    """Stream the tensors of a checkpoint into the stacked leaves of a `Base`."""
    places = _places(config)
    stored = _stored_tensors(folder)
    _check_tensors(folder, config, places, stored)
    if dtype is None:
        _check_one_dtype(folder, places, stored)
    leaves: dict[str, np.ndarray] = {}
    for file, names in _names_by_file(places, stored).items():
        with open_safetensors(file) as tensors:
            for name in names:
                place = places[name]
                if place.leaf not in leaves:
                    shape = place.shape[::-1] if place.turned else place.shape
                    layers = () if place.layer is None else (config.layers,)
                    leaves[place.leaf] = _empty((*layers, *shape), dtype or DTYPES[stored[name].dtype])
                leaf = leaves[place.leaf]
                # The tensor is given no name here, so that it is freed before the next one is read.
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
    on_device = {leaf: jax.device_put(leaves.pop(leaf)) for leaf in list(leaves)}
    outside = {leaf: on_device.pop(leaf, None) for leaf in ("embed", "norm", "head")}
    return Base(blocks=Block(**on_device), **outside)


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
    for name, place in places.items():
        if name not in stored:
            remedy = "restore it or set tie_word_embeddings" if name == HEAD else "restore it"
            raise InputError(
                f"the checkpoint in {folder} lacks the tensor {name} of a LLaMA with "
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
                f"the checkpoint in {folder} holds the tensor {name}, which a LLaMA with "
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
