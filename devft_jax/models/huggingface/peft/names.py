"""Names in an adapter's folder: its two files, the modules of a model, and the tensors of their factors."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from devft_jax.errors import InputError
from devft_jax.files import printable
from devft_jax.models.architecture import PROJECTIONS
from devft_jax.models.huggingface.names import PROJECTION_MODULES

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"

PREFIX_WORDS = frozenset({"base_model", "model"})
"""Prefixes of `layers` in a factor's name: PEFT writes `base_model.model.model.`, other tools less of it or nothing."""

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
"""Parts of names that data parallelism, compilation and activation checkpointing may insert."""


class Key(NamedTuple):
    """The factor that a tensor holds.

    Attributes:
      layer: counted from 0.
      projection: one of `PROJECTIONS`.
      factor: "A" or "B".
    """

    layer: int
    projection: str
    factor: str


def module_name(layer: int, projection: str) -> str:
    """The path of a projection in a Hugging Face model.

    Args:
      layer: counted from 0.
      projection: one of `PROJECTIONS`.
    """
    return f"model.layers.{layer}.{PROJECTION_MODULES[projection]}"


def tensor_name(key: Key) -> str:
    """The name that PEFT gives a factor's tensor.

    Args:
      key: the factor.
    """
    return f"base_model.model.{module_name(key.layer, key.projection)}.lora_{key.factor}.weight"


def factors_of(names: Sequence[str], file: Path) -> dict[Key, str]:
    """The tensors of a file by factor.

    Args:
      names: names of the tensors.
      file: the file, for messages.

    Raises:
      InputError: a tensor is not a factor of an `Adapter`, or two are the same factor.
    """
    projections = {module: name for name, module in PROJECTION_MODULES.items()}
    found: dict[Key, str] = {}
    adapters: dict[str, str] = {}
    for name in names:
        parts = [part for part in name.split(".") if part not in WRAPPERS]
        before = parts[: parts.index("layers")] if "layers" in parts else parts
        layer, *module = parts[len(before) + 1 :] or [""]
        # `lora_A.weight`, or in a state that PEFT did not save `lora_A.default.weight`, with the adapter's name.
        own = module.pop(-2) if len(module) > 2 and module[-3].startswith("lora_") else ""
        projection = projections.get(".".join(module[:-2]))
        is_factor = module[-2:] in (["lora_A", "weight"], ["lora_B", "weight"])
        if projection is None or not is_factor or not re.fullmatch("[0-9]{1,9}", layer):
            raise InputError(
                f"the tensor {printable(name)} in {file} is not a LoRA factor of a projection; give an adapter on "
                f"{', '.join(f'{name}_proj' for name in PROJECTIONS)} only."
            )
        if not PREFIX_WORDS.issuperset(before):
            raise InputError(
                f"the tensor {printable(name)} in {file} has the prefix '{printable('.'.join(before))}.' before its layers, "
                "which is unknown; rename it to base_model.model.model. if it is an adapter of this model."
            )
        key = Key(int(layer), projection, module[-2][-1])
        adapters.setdefault(own, name)
        if len(adapters) > 1:
            one, other = list(adapters.values())[:2]
            raise InputError(
                f"{file} holds several adapters ({printable(one)}, {printable(other)}); save one of them alone."
            )
        if key in found:
            raise InputError(
                f"{file} has both {printable(found[key])} and {printable(name)}, which are the same factor; remove one."
            )
        found[key] = name
    return found
