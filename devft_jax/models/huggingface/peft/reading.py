"""Reads an adapter from a folder that PEFT or `export_peft` wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.errors import InputError
from devft_jax.files import checked_path
from devft_jax.models.adapter import Adapter, LoraFactors
from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from devft_jax.models.huggingface.peft.names import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    Key,
    factors_of,
    module_name,
    tensor_name,
)
from devft_jax.models.huggingface.peft.settings import Settings, read_adapter_config
from devft_jax.models.huggingface.safetensors import open_safetensors
from devft_jax.models.options import DTYPES


def import_peft(path: str | Path, config: ModelConfig) -> Adapter:
    """Read an adapter that PEFT or `export_peft` wrote.

    Factors of smaller rank are padded with zeros to the largest rank of their projection; layers that
    `layers_to_transform`, `target_modules` or `exclude_modules` exclude have zero factors.

    Args:
      path: a folder with `adapter_config.json` and `adapter_model.safetensors`.
      config: architecture of the base to which the adapter belongs.

    Returns:
      The adapter, with factors in float32; its scale is one scalar if all modules have the same scale.

    Raises:
      InputError: the files cannot be read, describe anything other than plain LoRA on linear projections, or do not fit
        `config`.
    """
    folder = checked_path(path, "adapter")
    fields = read_adapter_config(folder)
    settings = Settings.read(fields, folder / ADAPTER_CONFIG_FILE, config.layers)
    file = folder / ADAPTER_WEIGHTS_FILE
    if not file.is_file():
        raise InputError(
            f"the adapter folder {folder} holds no {ADAPTER_WEIGHTS_FILE}; save the adapter as safetensors, because "
            "pickles are not read."
        )
    lora, scales = {}, {}
    with open_safetensors(file) as tensors:
        factors = factors_of(list(tensors.keys()), file)
        for projection in _targets(factors, config, file, settings):
            fan_in, fan_out = config.projection_shape(projection)
            modules = [module_name(layer, projection) for layer in range(config.layers)]
            adapted = [layer for layer, module in enumerate(modules) if module in settings.adapted]
            ranks = [settings.rank_of(module) for module in modules]
            # Sizes are checked in the file's header before anything is allocated.
            for layer in adapted:
                for factor, shape in (("A", (ranks[layer], fan_in)), ("B", (fan_out, ranks[layer]))):
                    key = Key(layer, projection, factor)
                    _check_stored(factors.get(key), key, tensors, shape, file, settings)
            largest = max((ranks[layer] for layer in adapted), default=1)
            a = np.zeros((config.layers, fan_in, largest), np.float32)
            b = np.zeros((config.layers, largest, fan_out), np.float32)
            for layer in adapted:
                one, other = (factors[Key(layer, projection, factor)] for factor in "AB")
                a[layer, :, : ranks[layer]] = _finite(tensors.get_tensor(one), one, layer, file).T
                b[layer, : ranks[layer]] = _finite(tensors.get_tensor(other), other, layer, file).T
            lora[projection] = LoraFactors(a=jnp.asarray(a), b=jnp.asarray(b))
            scales[projection] = np.array([settings.scale_of(module) for module in modules], np.float32)
    different = np.unique(np.concatenate(list(scales.values())))
    scale = jnp.float32(different[0]) if len(different) == 1 else jax.tree.map(jnp.asarray, scales)
    return Adapter(lora=lora, scale=scale, dropout=settings.dropout)


def _targets(factors: Mapping[Key, str], config: ModelConfig, file: Path, settings: Settings) -> list[str]:
    """The adapted projections, in the order of `PROJECTIONS`."""
    for key, name in factors.items():
        if key.layer >= config.layers:
            raise InputError(
                f"the tensor {name} in {file} is of layer {key.layer} but the model has {config.layers} layers "
                f"numbered from 0; {settings.remedy}."
            )
        if module_name(key.layer, key.projection) not in settings.adapted:
            raise InputError(
                f"the tensor {name} in {file} belongs to a module that target_modules, exclude_modules and "
                f"layers_to_transform in {ADAPTER_CONFIG_FILE} leave out; correct them or restore the weights."
            )
    found = {key.projection for key in factors}
    if not found:
        raise InputError(f"{file} holds no LoRA factors; give a trained adapter.")
    found |= {name for name in PROJECTIONS if settings.asks_for(name, config.layers)}
    return sorted(found, key=PROJECTIONS.index)


def _check_stored(name: str | None, key: Key, tensors: Any, shape: tuple[int, int], file: Path, settings: Settings) -> None:
    """Raise `InputError` unless an open file's header has a factor of this shape and of a supported data type."""
    if name is None:
        raise InputError(
            f"{file} lacks the tensor {tensor_name(key)}, but {ADAPTER_CONFIG_FILE} and the model's depth require it; "
            f"restore it, or {settings.remedy}."
        )
    header = tensors.get_slice(name)
    found = tuple(header.get_shape())
    if found != shape:
        ranks = "r and rank_pattern" if settings.ranks else "r"
        raise InputError(
            f"the tensor {name} in {file} has shape {found} but the model and the adapter's {ranks} imply {shape}; "
            f"{settings.remedy}, or correct {ranks}."
        )
    if header.get_dtype() not in DTYPES:
        raise InputError(f"the tensor {name} in {file} has the type {header.get_dtype()}; save the adapter in float32.")


def _finite(tensor: np.ndarray, name: str, layer: int, file: Path) -> np.ndarray:
    """A factor in float32; refuses one with values that would make all outputs of the model NaN."""
    tensor = tensor.astype(np.float32)
    if not np.isfinite(tensor).all():
        raise InputError(
            f"the tensor {name} in {file} (layer {layer}, counted from 0) has NaN or infinite values, so the model's "
            "outputs would be NaN; restore it, or take an adapter from before the training diverged."
        )
    return tensor
