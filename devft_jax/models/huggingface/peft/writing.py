"""Writes an adapter as a folder that PEFT loads."""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np

from devft_jax.errors import InputError
from devft_jax.models.adapter import Adapter, layer_scales
from devft_jax.models.architecture import PROJECTIONS
from devft_jax.models.huggingface.folder import GENERATION_CONFIG_FILE
from devft_jax.models.huggingface.peft.names import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, Key, module_name, tensor_name
from devft_jax.models.huggingface.safetensors import PlannedTensor, replace_files, write_json, write_safetensors

T = TypeVar("T")
Module: TypeAlias = tuple[int, str]
"""A layer and the name of one of its projections."""


def export_peft(
    adapter: Adapter, path: str | Path, *, base_model: str | None = None, answer_ends: Sequence[int] = ()
) -> None:
    """Write an adapter as a folder that PEFT loads, in float32.

    A layer's rank is that of its factors without trailing columns of `a` and rows of `b` that are both zero, at least 1.
    Ranks and alphas that vary are written as `rank_pattern` and `alpha_pattern`.

    Args:
      adapter: an adapter with factors for every layer of the model.
      path: the folder, created if absent; older files of the two names are replaced once the new ones are complete.
      base_model: folder or Hugging Face name of the base to which the adapter belongs.
      answer_ends: ids of the tokens that end its answers, stored in a generation_config.json.

    Raises:
      InputError: the adapter has no factors, has NaN or infinite values, or comes from a hypernetwork, which PEFT does not
        support.
      RunError: the folder cannot be written.
    """
    if adapter.hyper is not None:
        raise InputError("PEFT does not support adapters from a hypernetwork; keep the run's checkpoints.")
    if not adapter.lora:
        raise InputError("the adapter adapts no projection; give one with factors.")
    check_finite(adapter)
    tensors, ranks, alphas = _planned_tensors(adapter)
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
        "target_modules": [f"{name}_proj" for name in PROJECTIONS if name in adapter.lora],
    }
    fields |= {"rank_pattern": rank_pattern} if rank_pattern else {}
    fields |= {"alpha_pattern": alpha_pattern} if alpha_pattern else {}
    files: dict[str, Callable[[Path], Any]] = {
        ADAPTER_WEIGHTS_FILE: lambda file: write_safetensors(file, tensors),
        ADAPTER_CONFIG_FILE: lambda file: write_json(file, fields),
    }
    if answer_ends:
        ends = {"eos_token_id": list(answer_ends)}
        files[GENERATION_CONFIG_FILE] = lambda file: write_json(file, ends)
    replace_files(Path(path), files, key_file=ADAPTER_CONFIG_FILE, stale=GENERATION_CONFIG_FILE.__eq__)


def check_finite(adapter: Adapter) -> None:
    """Raise `InputError` for a NaN or infinite factor, which would turn every output of a model into NaN.

    Args:
      adapter: the adapter.
    """
    for name, factors in adapter.lora.items():
        for factor, values in (("A", factors.a), ("B", factors.b)):
            broken = np.flatnonzero(~np.isfinite(np.asarray(values, np.float32)).all(axis=(1, 2)))
            if len(broken):
                raise InputError(
                    f"the adapter's lora_{factor} of {name}_proj has NaN or infinite values in layer {broken[0]}, counted "
                    "from 0, so the model's outputs would be NaN; use an earlier stage or checkpoint."
                )


def _planned_tensors(adapter: Adapter) -> tuple[dict[str, PlannedTensor], dict[Module, int], dict[Module, float]]:
    """The factors' tensors by name, and every module's rank and alpha."""
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
                tensors[tensor_name(Key(layer, name, factor))] = PlannedTensor(values.shape, "float32", make)
    return tensors, ranks, alphas


def _alpha(scale: jax.Array, rank: int) -> float:
    """The alpha that reproduces `scale` exactly; a whole number if possible."""
    exact = np.float32(scale)
    alpha = float(exact) * rank
    return round(alpha) if np.float32(round(alpha) / rank) == exact else alpha


def _shared_and_pattern(values: Mapping[Module, T]) -> tuple[T, dict[str, T]]:
    """The most common value, and PEFT's pattern for the modules with other values.

    A projection with one value in all layers is named once, otherwise module by module.
    """
    shared = Counter(values.values()).most_common(1)[0][0]
    pattern: dict[str, T] = {}
    for name in dict.fromkeys(name for _, name in values):
        layers = {layer: value for (layer, other), value in values.items() if other == name}
        if len(set(layers.values())) == 1:
            named = {f"{name}_proj": layers[0]}
        else:
            named = {module_name(layer, name): value for layer, value in layers.items()}
        pattern |= {module: value for module, value in named.items() if value != shared}
    return shared, pattern
