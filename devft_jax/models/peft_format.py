"""Adapters in the format of Hugging Face's PEFT, out and in, without PyTorch.

A folder holds `adapter_config.json` and `adapter_model.safetensors`, which `PeftModel.from_pretrained` loads onto the
base that the adapter was trained on. PEFT writes the update of layer i as `lora_B @ lora_A` on `[out, in]` weights, so
its `lora_A.weight [r, in]` is our `a[i].T` and its `lora_B.weight [out, r]` our `b[i].T` (Hu et al. 2022, with A and B
as PEFT names them). Import accepts only what an `Adapter` computes exactly and refuses every variant of LoRA that PEFT
would compute otherwise.

An adapter fits a base of its own depth: that of a stage's submodel is mapped back to full depth before it is exported.

Axis letters: L layers, r rank.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.errors import InputError
from devft_jax.models.files import DTYPES, open_safetensors, read_json, write_files
from devft_jax.models.llama import PROJECTIONS, Adapter, LoraFactors, ModelConfig
from devft_jax.models.pretrained import PROJECTION_MODULES

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"

TENSOR_NAME = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.([\w.]+)\.lora_([AB])\.weight")

PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base as it is; others, such as "pissa", change it on loading."""

UNSUPPORTED_FIELDS = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "fan_in_fan_out",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "use_rslora",
    "velora_config",
)
"""Fields that, where set, make PEFT compute something else than `x @ W + lora_alpha / r * (x @ a) @ b`."""


def export_peft(adapter: Adapter, path: str | Path, *, base_model: str | None = None) -> None:
    """Write an adapter as a folder that PEFT loads, in float32.

    Args:
      adapter: factors of every layer of the full model; all targets of one rank.
      path: the folder, made if absent; older files of the two names are replaced once the new ones are complete.
      base_model: folder or Hugging Face name of the base that the adapter belongs to.

    Raises:
      InputError: the targets differ in rank.
      RunError: the folder cannot be written.
    """
    ranks = {name: factors.a.shape[-1] for name, factors in adapter.lora.items()}
    if len(set(ranks.values())) != 1:
        raise InputError(f"the adapter's ranks {ranks} differ, which export does not support; use one rank.")
    rank = next(iter(ranks.values()))
    tensors = {}
    for name, factors in adapter.lora.items():
        a, b = (np.asarray(part, np.float32) for part in (factors.a, factors.b))
        for layer in range(len(a)):
            tensors[_tensor_name(layer, name, "A")] = a[layer].T
            tensors[_tensor_name(layer, name, "B")] = b[layer].T
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": _alpha(adapter.scale, rank),
        "lora_dropout": adapter.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": [f"{name}_proj" for name in PROJECTIONS if name in adapter.lora],
    }
    write_files(Path(path), (ADAPTER_WEIGHTS_FILE, tensors), (ADAPTER_CONFIG_FILE, fields))


def _alpha(scale: jax.Array, rank: int) -> float:
    """The alpha that gives back `scale` exactly, a whole number where one does."""
    exact = np.float32(scale)
    alpha = float(exact) * rank
    return round(alpha) if np.float32(round(alpha) / rank) == exact else alpha


def _tensor_name(layer: int, projection: str, factor: str) -> str:
    module = PROJECTION_MODULES[projection]
    return f"base_model.model.model.layers.{layer}.{module}.lora_{factor}.weight"


def import_peft(path: str | Path, config: ModelConfig) -> Adapter:
    """Read an adapter that PEFT or `export_peft` wrote.

    Args:
      path: a folder with `adapter_config.json` and `adapter_model.safetensors`.
      config: the architecture of the base that the adapter is for.

    Returns:
      The adapter, its factors in float32.

    Raises:
      InputError: the files cannot be read, describe anything but plain LoRA on linear projections, or do not fit
        `config`.
    """
    folder = Path(path).expanduser()
    fields = read_json(folder / ADAPTER_CONFIG_FILE)
    _refuse_other_methods(fields, folder / ADAPTER_CONFIG_FILE)
    rank, alpha = (_positive(fields, name, folder) for name in ("r", "lora_alpha"))
    dropout = fields.get("lora_dropout") or 0.0
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise InputError(
            f"lora_dropout {json.dumps(dropout)} in {folder / ADAPTER_CONFIG_FILE} is outside [0, 1); correct it."
        )
    file = folder / ADAPTER_WEIGHTS_FILE
    if not file.is_file():
        raise InputError(
            f"the adapter folder {folder} holds no {ADAPTER_WEIGHTS_FILE}; save the adapter as safetensors, because "
            "pickles are not read."
        )
    with open_safetensors(file) as tensors:
        factors = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    lora = {}
    for projection in _targets(factors, config, file):
        fan_in, fan_out = config.projection_shape(projection)
        parts = {}
        for factor, shape in (("A", (rank, fan_in)), ("B", (fan_out, rank))):
            names = [_tensor_name(layer, projection, factor) for layer in range(config.layers)]
            layers = [_checked(factors, name, shape, file).T.astype(np.float32) for name in names]
            parts[factor] = jnp.asarray(np.stack(layers))
        lora[projection] = LoraFactors(a=parts["A"], b=parts["B"])
    return Adapter(lora=lora, scale=jnp.float32(alpha / rank), dropout=float(dropout))


def _refuse_other_methods(fields: Mapping[str, Any], path: Path) -> None:
    accepted: dict[str, tuple[Any, ...]] = {
        "peft_type": ("LORA",),
        "bias": ("none", None),
        "init_lora_weights": PLAIN_INITIALISATIONS,
    }
    refused = [name for name, values in accepted.items() if fields.get(name) not in values]
    refused += [name for name in UNSUPPORTED_FIELDS if fields.get(name)]
    if refused:
        raise InputError(
            f"{refused[0]} {json.dumps(fields.get(refused[0]))} in {path} is not supported; give an adapter of plain "
            "LoRA on linear projections."
        )


def _positive(fields: Mapping[str, Any], name: str, folder: Path) -> Any:
    value = fields.get(name)
    kinds = int if name == "r" else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or value <= 0:
        raise InputError(
            f"{name} {json.dumps(value)} in {folder / ADAPTER_CONFIG_FILE} is not a positive number; correct it."
        )
    return value


def _targets(factors: Mapping[str, np.ndarray], config: ModelConfig, file: Path) -> list[str]:
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
                "numbered from 0; give the adapter of this model."
            )
        found.add(projections[match[2]])
    if not found:
        raise InputError(f"{file} holds no LoRA factors; give a trained adapter.")
    return sorted(found, key=PROJECTIONS.index)


def _checked(factors: Mapping[str, np.ndarray], name: str, shape: tuple[int, int], file: Path) -> np.ndarray:
    if name not in factors:
        raise InputError(f"{file} lacks the tensor {name}; give an adapter that covers every layer of the model.")
    tensor = factors[name]
    if tensor.shape != shape:
        raise InputError(
            f"the tensor {name} in {file} has shape {tensor.shape} but the model and the adapter's r imply {shape}; "
            "give the adapter of this model."
        )
    if tensor.dtype.name not in DTYPES.values():
        raise InputError(f"the tensor {name} in {file} has the type {tensor.dtype}; save the adapter in float32.")
    return tensor
