"""Adapters in the format of Hugging Face's PEFT, out and in, without PyTorch.

A folder holds `adapter_config.json` and `adapter_model.safetensors`, which `PeftModel.from_pretrained` loads onto the
base that the adapter was trained on. PEFT writes the update of layer i as `lora_B @ lora_A` on `[out, in]` weights, so
its `lora_A.weight [r, in]` is our `a[i].T` and its `lora_B.weight [out, r]` our `b[i].T` (Hu et al. 2022, with A and B
as PEFT names them). Ranks and alphas may vary by module: `rank_pattern` and `alpha_pattern` name modules by regular
expressions that match the end of their paths. The scale is alpha / r, or alpha / sqrt(r) where it is rank-stabilised
(Kalajdzievski 2023). Import accepts only what an `Adapter` computes exactly and refuses every variant of LoRA that PEFT
would compute otherwise.

An adapter fits a base of its own depth: that of a stage's submodel is mapped back to full depth before it is exported.

Axis letters: L layers, r rank.
"""

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.errors import InputError
from devft_jax.models.files import (
    DTYPES,
    PlannedTensor,
    open_safetensors,
    read_json,
    replace_files,
    write_json,
    write_safetensors,
)
from devft_jax.models.llama import PROJECTIONS, Adapter, LoraFactors, ModelConfig, layer_scales
from devft_jax.models.pretrained import PROJECTION_MODULES

T = TypeVar("T")
Module = tuple[int, str]
"""A layer and the name of one of its projections."""

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"

TENSOR_NAME = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.([\w.]+)\.lora_([AB])\.weight")

PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base as it is; others, such as "pissa", change it on loading."""

UNSUPPORTED_FIELDS = (
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)
"""Fields that, where set, make PEFT compute something else than `x @ W + scale * (x @ a) @ b` in every module."""


def export_peft(adapter: Adapter, path: str | Path, *, base_model: str | None = None) -> None:
    """Write an adapter as a folder that PEFT loads, in float32.

    A layer's rank is what remains of its factors without trailing columns of `a` and rows of `b` that are zero in both, at
    least 1. Ranks and alphas that vary are written as `rank_pattern` and `alpha_pattern`.

    Args:
      adapter: factors of every layer of the model.
      path: the folder, made if absent; older files of the two names are replaced once the new ones are complete.
      base_model: folder or Hugging Face name of the base that the adapter belongs to.

    Raises:
      InputError: the adapter has no factors, or is made by a hypernetwork, which PEFT does not know.
      RunError: the folder cannot be written.
    """
    if adapter.hyper is not None:
        raise InputError("PEFT knows no adapter that a hypernetwork makes; keep the run's checkpoints.")
    if not adapter.lora:
        raise InputError("the adapter adapts no projection; give one with factors.")
    tensors: dict[str, PlannedTensor] = {}
    ranks: dict[Module, int] = {}
    alphas: dict[Module, float] = {}
    targets = [name for name in PROJECTIONS if name in adapter.lora]
    depth = adapter.lora[targets[0]].a.shape[0]
    scales = layer_scales(adapter, depth)
    for name in targets:
        a, b = (np.asarray(part, np.float32) for part in (adapter.lora[name].a, adapter.lora[name].b))
        for layer in range(depth):
            used = np.flatnonzero(a[layer].any(axis=0) | b[layer].any(axis=1))
            rank = int(used[-1]) + 1 if len(used) else 1
            ranks[layer, name] = rank
            alphas[layer, name] = _alpha(scales[name][layer], rank)
            for factor, values in (("A", a[layer, :, :rank].T), ("B", b[layer, :rank].T)):
                make = functools.partial(np.asarray, values)
                tensors[_tensor_name(layer, name, factor)] = PlannedTensor(values.shape, "float32", make)
    rank, rank_pattern = _shared_and_pattern(ranks)
    alpha, alpha_pattern = _shared_and_pattern(alphas)
    fields: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": adapter.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": [f"{name}_proj" for name in targets],
    }
    fields |= {"rank_pattern": rank_pattern} if rank_pattern else {}
    fields |= {"alpha_pattern": alpha_pattern} if alpha_pattern else {}
    files = {
        ADAPTER_WEIGHTS_FILE: lambda file: write_safetensors(file, tensors),
        ADAPTER_CONFIG_FILE: lambda file: write_json(file, fields),
    }
    replace_files(Path(path), files, key_file=ADAPTER_CONFIG_FILE)


def _alpha(scale: jax.Array, rank: int) -> float:
    """The alpha that gives back `scale` exactly, a whole number where one does."""
    exact = np.float32(scale)
    alpha = float(exact) * rank
    return round(alpha) if np.float32(round(alpha) / rank) == exact else alpha


def _shared_and_pattern(values: Mapping[Module, T]) -> tuple[T, dict[str, T]]:
    """The commonest value, and PEFT's pattern for the modules that have another.

    A projection with one value in all layers is named once for all of them, otherwise module by module.
    """
    shared = Counter(values.values()).most_common(1)[0][0]
    pattern: dict[str, T] = {}
    for name in dict.fromkeys(name for _, name in values):
        layers = {layer: value for (layer, other), value in values.items() if other == name}
        if len(set(layers.values())) == 1:
            named = {f"{name}_proj": layers[0]}
        else:
            named = {_module_name(layer, name): value for layer, value in layers.items()}
        pattern |= {module: value for module, value in named.items() if value != shared}
    return shared, pattern


def _module_name(layer: int, projection: str) -> str:
    return f"model.layers.{layer}.{PROJECTION_MODULES[projection]}"


def _tensor_name(layer: int, projection: str, factor: str) -> str:
    return f"base_model.model.{_module_name(layer, projection)}.lora_{factor}.weight"


def import_peft(path: str | Path, config: ModelConfig) -> Adapter:
    """Read an adapter that PEFT or `export_peft` wrote.

    Factors of smaller rank are padded with zeros to the largest of their projection; layers that
    `layers_to_transform`, `target_modules` or `exclude_modules` leave out have zero factors.

    Args:
      path: a folder with `adapter_config.json` and `adapter_model.safetensors`.
      config: the architecture of the base that the adapter is for.

    Returns:
      The adapter, its factors in float32; its scale is one scalar where all modules have the same.

    Raises:
      InputError: the files cannot be read, describe anything but plain LoRA on linear projections, or do not fit
        `config`.
    """
    folder = Path(path).expanduser()
    fields = read_adapter_config(folder)
    settings = _Settings.read(fields, folder / ADAPTER_CONFIG_FILE)
    file = folder / ADAPTER_WEIGHTS_FILE
    if not file.is_file():
        raise InputError(
            f"the adapter folder {folder} holds no {ADAPTER_WEIGHTS_FILE}; save the adapter as safetensors, because "
            "pickles are not read."
        )
    with open_safetensors(file) as tensors:
        factors = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    targets = _targets(factors, config, file, settings)
    lora, scales = {}, {}
    for projection in targets:
        fan_in, fan_out = config.projection_shape(projection)
        modules = [_module_name(layer, projection) for layer in range(config.layers)]
        adapted = [layer for layer in range(config.layers) if settings.adapts(layer, modules[layer])]
        ranks = [settings.rank_of(module) for module in modules]
        largest = max((ranks[layer] for layer in adapted), default=1)
        a = np.zeros((config.layers, fan_in, largest), np.float32)
        b = np.zeros((config.layers, largest, fan_out), np.float32)
        for layer in adapted:
            rank = ranks[layer]
            one, other = (_tensor_name(layer, projection, factor) for factor in "AB")
            a[layer, :, :rank] = _checked(factors, one, (rank, fan_in), file, settings).T
            b[layer, :rank] = _checked(factors, other, (fan_out, rank), file, settings).T
        lora[projection] = LoraFactors(a=jnp.asarray(a), b=jnp.asarray(b))
        scales[projection] = np.array([settings.scale_of(module) for module in modules], np.float32)
    different = np.unique(np.concatenate(list(scales.values())))
    scale = jnp.float32(different[0]) if len(different) == 1 else jax.tree.map(jnp.asarray, scales)
    return Adapter(lora=lora, scale=scale, dropout=settings.dropout)


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The fields of an adapter folder's `adapter_config.json`.

    Raises:
      InputError: the file cannot be read, or describes anything but plain LoRA on linear projections.
    """
    fields = read_json(folder / ADAPTER_CONFIG_FILE)
    _refuse_other_methods(fields, folder / ADAPTER_CONFIG_FILE)
    return fields


@dataclass(frozen=True)
class _Settings:
    """What an `adapter_config.json` says about every module.

    `layers` are those of `layers_to_transform`, None for all. `targets` and `excluded` are endings of module names, a
    regular expression of whole ones, or None.
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rank_stabilised: bool
    dropout: float
    layers: Sequence[int] | None
    targets: Sequence[str] | str | None
    excluded: Sequence[str] | str | None
    base: str | None

    @classmethod
    def read(cls, fields: Mapping[str, Any], path: Path) -> Self:
        """Check and take the fields of the file at `path`."""
        dropout = fields.get("lora_dropout") or 0.0
        if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise InputError(f"lora_dropout {json.dumps(dropout)} in {path} is outside [0, 1); correct it.")
        layers = fields.get("layers_to_transform")
        layers = [layers] if isinstance(layers, int) else layers or None
        if layers is not None and not (isinstance(layers, list) and all(type(layer) is int for layer in layers)):
            raise InputError(f"layers_to_transform {json.dumps(layers)} in {path} is no list of layers; correct it.")
        base = fields.get("base_model_name_or_path")
        return cls(
            rank=_checked_rank("r", fields.get("r"), path),
            alpha=_checked_alpha("lora_alpha", fields.get("lora_alpha"), path),
            rank_pattern=_checked_pattern(fields, "rank_pattern", path, _checked_rank),
            alpha_pattern=_checked_pattern(fields, "alpha_pattern", path, _checked_alpha),
            rank_stabilised=bool(fields.get("use_rslora")),
            dropout=float(dropout),
            layers=layers,
            targets=_checked_names(fields, "target_modules", path),
            excluded=_checked_names(fields, "exclude_modules", path),
            base=base if isinstance(base, str) and base else None,
        )

    def rank_of(self, module: str) -> int:
        """The rank of one module's factors."""
        return _look_up(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """What multiplies the product of one module's factors."""
        rank = self.rank_of(module)
        return _look_up(self.alpha_pattern, module, self.alpha) / (math.sqrt(rank) if self.rank_stabilised else rank)

    def adapts(self, layer: int, module: str) -> bool:
        """Whether PEFT adapts one module."""
        if self.excluded and _names(self.excluded, module):
            return False
        if self.layers is not None and layer not in self.layers:
            return False
        return self.targets in (None, "all-linear") or _names(self.targets, module)

    def asks_for(self, projection: str, depth: int) -> bool:
        """Whether some layer's projection is adapted by name, so that its factors must be there."""
        if self.targets in (None, "all-linear"):
            return False
        return any(self.adapts(layer, _module_name(layer, projection)) for layer in range(depth))

    @property
    def remedy(self) -> str:
        """What to do about an adapter that does not fit the model."""
        if self.base is None:
            return "give the model that the adapter was made for"
        return f"the adapter was made for {self.base}: give that model"


def _look_up(pattern: Mapping[str, T], module: str, default: T) -> T:
    """The value of the first key that is, as a regular expression, the end of a module's path (from a dot on)."""
    return next((value for key, value in pattern.items() if re.match(_path_end(key), module)), default)


def _path_end(key: str) -> str:
    return rf"(.*\.)?({key})$"


def _names(chosen: Sequence[str] | str, module: str) -> bool:
    if isinstance(chosen, str):
        return re.fullmatch(chosen, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in chosen)


def _refuse_other_methods(fields: Mapping[str, Any], path: Path) -> None:
    accepted: dict[str, tuple[Any, ...]] = {
        "peft_type": ("LORA",),
        "bias": ("none", None),
        "init_lora_weights": PLAIN_INITIALISATIONS,
        "layers_pattern": (None, "", "layers", [], ["layers"]),
    }
    refused = [name for name, values in accepted.items() if fields.get(name) not in values]
    refused += [name for name in UNSUPPORTED_FIELDS if fields.get(name)]
    if refused:
        raise InputError(
            f"{refused[0]} {json.dumps(fields.get(refused[0]))} in {path} is not supported; give an adapter of plain "
            "LoRA on linear projections."
        )


def _checked_rank(name: str, value: Any, path: Path) -> int:
    if type(value) is not int or value < 1:
        raise InputError(f"{name} {json.dumps(value)} in {path} is not a positive number; correct it.")
    return value


def _checked_alpha(name: str, value: Any, path: Path) -> float:
    # Zero and negative ones are unusual, but PEFT computes them, and so does an `Adapter`.
    if type(value) not in (int, float) or not math.isfinite(value):
        raise InputError(f"{name} {json.dumps(value)} in {path} is not a finite number; correct it.")
    return value


def _checked_pattern(
    fields: Mapping[str, Any], name: str, path: Path, checked: Callable[[str, Any, Path], T]
) -> dict[str, T]:
    pattern = fields.get(name) or {}
    if not isinstance(pattern, dict):
        raise InputError(f"{name} {json.dumps(pattern)} in {path} does not map modules to numbers; correct it.")
    for key in pattern:
        _check_expression(name, key, path, used=_path_end(key))
    return {key: checked(f"{name} of {key}", value, path) for key, value in pattern.items()}


def _checked_names(fields: Mapping[str, Any], name: str, path: Path) -> Sequence[str] | str | None:
    names = fields.get(name)
    if isinstance(names, str) and names != "all-linear":
        _check_expression(name, names, path)
    elif isinstance(names, list) and all(isinstance(item, str) for item in names):
        return names
    elif not isinstance(names, str | None):
        raise InputError(f"{name} {json.dumps(names)} in {path} does not name modules; correct it.")
    return names


def _check_expression(name: str, expression: str, path: Path, used: str | None = None) -> None:
    """Raise `InputError` unless an expression can be used; `used` is what it becomes a part of."""
    try:
        re.compile(expression if used is None else used)
    except re.error as error:
        raise InputError(
            f"{name} {json.dumps(expression)} in {path} is no regular expression ({error}); correct it."
        ) from error


def _targets(factors: Mapping[str, np.ndarray], config: ModelConfig, file: Path, settings: _Settings) -> list[str]:
    """The adapted projections, in the order of `PROJECTIONS`; refuses tensors that an `Adapter` has no place for."""
    projections = {module: name for name, module in PROJECTION_MODULES.items()}
    found = set()
    for name in factors:
        match = TENSOR_NAME.fullmatch(name)
        if match is None or match[2] not in projections:
            raise InputError(
                f"the tensor {name} in {file} is not a LoRA factor of a projection; give an adapter on "
                f"{', '.join(f'{name}_proj' for name in PROJECTIONS)} only."
            )
        if int(match[1]) >= config.layers:
            raise InputError(
                f"the tensor {name} in {file} is of layer {match[1]} but the model has {config.layers} layers "
                f"numbered from 0; {settings.remedy}."
            )
        module = f"model.layers.{match[1]}.{match[2]}"
        if not settings.adapts(int(match[1]), module):
            raise InputError(
                f"the tensor {name} in {file} belongs to a module that target_modules, exclude_modules and "
                f"layers_to_transform in {ADAPTER_CONFIG_FILE} leave out; correct them or restore the weights."
            )
        found.add(projections[match[2]])
    if not found:
        raise InputError(f"{file} holds no LoRA factors; give a trained adapter.")
    found |= {name for name in PROJECTIONS if settings.asks_for(name, config.layers)}
    return sorted(found, key=PROJECTIONS.index)


def _checked(
    factors: Mapping[str, np.ndarray], name: str, shape: tuple[int, int], file: Path, settings: _Settings
) -> np.ndarray:
    if name not in factors:
        raise InputError(
            f"{file} lacks the tensor {name}, but {ADAPTER_CONFIG_FILE} and the model's depth ask for it; restore it, or "
            f"else {settings.remedy}."
        )
    tensor = factors[name]
    if tensor.shape != shape:
        ranks = "r and rank_pattern" if settings.rank_pattern else "r"
        raise InputError(
            f"the tensor {name} in {file} has shape {tensor.shape} but the model and the adapter's {ranks} imply {shape}; "
            f"{settings.remedy}, or correct {ranks}."
        )
    if tensor.dtype.name not in DTYPES.values():
        raise InputError(f"the tensor {name} in {file} has the type {tensor.dtype}; save the adapter in float32.")
    return tensor.astype(np.float32)
