"""The settings in an adapter's `adapter_config.json`, checked: only plain LoRA on linear projections is accepted."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from devft_jax.errors import InputError
from devft_jax.models.architecture import PROJECTIONS
from devft_jax.models.huggingface.folder import check_inside
from devft_jax.models.huggingface.peft.matching import Matcher
from devft_jax.models.huggingface.peft.names import ADAPTER_CONFIG_FILE, module_name
from devft_jax.models.huggingface.safetensors import read_json, shown

LARGEST_ALPHA = 1e30
"""Largest value of scales, which are used in float32."""

PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that do not change the base; others, such as "pissa", change it on loading."""

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
"""Fields that, if set, make PEFT compute something other than `x @ W + scale * (x @ a) @ b`, in every module."""


def base_of_adapter(folder: Path, remedy: str) -> str:
    """The folder or the Hugging Face name of the base that a PEFT adapter names.

    Args:
      folder: the adapter's folder.
      remedy: end of the error message if it names none, such as "give the base".

    Raises:
      InputError: it names none.
    """
    named = read_adapter_config(folder).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise InputError(f"{folder / ADAPTER_CONFIG_FILE} does not name the adapter's base; {remedy}.")
    return named


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The fields of an adapter folder's `adapter_config.json`.

    Args:
      folder: the adapter's folder.

    Raises:
      InputError: the file cannot be read, or describes anything other than plain LoRA on linear projections.
    """
    if folder.is_dir():
        check_inside(folder)
    fields = read_json(folder / ADAPTER_CONFIG_FILE)
    _refuse_other_methods(fields, folder / ADAPTER_CONFIG_FILE)
    return fields


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
            f"{refused[0]} {shown(fields.get(refused[0]))} in {path} is not supported; give an adapter of plain "
            "LoRA on linear projections."
        )


@dataclass(frozen=True)
class Settings:
    """The settings that an `adapter_config.json` gives for every module of a model.

    Attributes:
      rank: rank of modules that no pattern names.
      alpha: alpha of modules that no pattern names.
      ranks: ranks of modules that the pattern names.
      alphas: alphas of modules that the pattern names.
      rank_stabilised: whether the scale is alpha / sqrt(r).
      dropout: probability of dropping an input element while training.
      adapted: modules that PEFT adapts.
      asked: whether the modules are listed, so that their factors must exist.
      base: the base that the adapter names.
    """

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rank_stabilised: bool
    dropout: float
    adapted: frozenset[str]
    asked: bool
    base: str | None

    @classmethod
    def read(cls, fields: Mapping[str, Any], path: Path, depth: int) -> Self:
        """Check the fields of a configuration and take their values.

        Args:
          fields: fields of the configuration.
          path: path of the file, for messages.
          depth: number of layers of the model.

        Raises:
          InputError: a field has a value that PEFT would not write.
        """
        dropout = fields.get("lora_dropout") or 0.0
        if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise InputError(f"lora_dropout {shown(dropout)} in {path} is outside [0, 1); correct it.")
        layers = fields.get("layers_to_transform")
        layers = [layers] if isinstance(layers, int) else layers or None
        if layers is not None and not (isinstance(layers, list) and all(type(layer) is int for layer in layers)):
            raise InputError(f"layers_to_transform {shown(layers)} in {path} is not a list of layers; correct it.")
        modules = {module_name(layer, name): layer for layer in range(depth) for name in PROJECTIONS}
        matcher = Matcher(list(modules), path)
        rank = _checked_rank("r", fields.get("r"), path)
        alpha = _checked_alpha("lora_alpha", fields.get("lora_alpha"), path)
        ranks = matcher.endings(fields, "rank_pattern", _checked_rank)
        alphas = matcher.endings(fields, "alpha_pattern", _checked_alpha)
        targets = matcher.named(fields, "target_modules")
        excluded = matcher.named(fields, "exclude_modules")
        matcher.match()
        chosen = modules.keys() if targets is None else targets()
        left_out = set() if excluded is None else excluded()
        within = None if layers is None else set(layers)
        adapted = {name for name in chosen if name not in left_out and (within is None or modules[name] in within)}
        base = fields.get("base_model_name_or_path")
        return cls(
            rank=rank,
            alpha=alpha,
            ranks=ranks(),
            alphas=alphas(),
            rank_stabilised=bool(fields.get("use_rslora")),
            dropout=float(dropout),
            adapted=frozenset(adapted),
            asked=targets is not None,
            base=base if isinstance(base, str) and base else None,
        )

    def rank_of(self, module: str) -> int:
        """The rank of one module's factors.

        Args:
          module: path of the module.
        """
        return self.ranks.get(module, self.rank)

    def scale_of(self, module: str) -> float:
        """The factor of the product of one module's factors.

        Args:
          module: path of the module.
        """
        rank = self.rank_of(module)
        return self.alphas.get(module, self.alpha) / (math.sqrt(rank) if self.rank_stabilised else rank)

    def asks_for(self, projection: str, depth: int) -> bool:
        """Whether a projection is listed for some layer, so that its factors must exist.

        Args:
          projection: one of `PROJECTIONS`.
          depth: number of layers of the model.
        """
        return self.asked and any(module_name(layer, projection) in self.adapted for layer in range(depth))

    @property
    def remedy(self) -> str:
        """What to do with an adapter that does not fit the model."""
        if self.base is None:
            return "give the model that the adapter was made for"
        return f"the adapter was made for {self.base}: give that model"


def _checked_rank(name: str, value: Any, path: Path) -> int:
    if type(value) is not int or value < 1:
        raise InputError(f"{name} {shown(value)} in {path} is not a positive number; correct it.")
    return value


def _checked_alpha(name: str, value: Any, path: Path) -> float:
    # Zero and negative alphas are unusual, but PEFT computes them, and so does an `Adapter`.
    if type(value) not in (int, float) or not abs(value) < LARGEST_ALPHA:
        raise InputError(f"{name} {shown(value)} in {path} is not a finite number; correct it.")
    return value
