"""Model families: how each differs from LLaMA, and reading and writing its `config.json` in Hugging Face's layout.

All families share one forward pass (`devft_jax.models.llama`); a `Family` declares its few differences: which fields of its
config.json matter, their defaults when absent (as in Hugging Face's configuration classes), and which of the forward pass's
options they set. A config that requires anything else is refused in one sentence.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devft_jax.errors import InputError
from devft_jax.models.architecture import ModelConfig, RopeScaling
from devft_jax.models.huggingface.safetensors import read_json, shown

ATTENTION_BIASES = ("q", "k", "v", "o")
MLP_BIASES = ("gate", "up", "down")


LARGEST = {
    "num_hidden_layers": 4096,
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "vocab_size": 2**24,
    "max_position_embeddings": 2**31 - 1,
    "sliding_window": 2**31 - 1,
    "original_max_position_embeddings": 2**31 - 1,
}
"""Sizes far beyond any existing model: larger ones are damage, and would be used before any weight is read."""

LARGEST_FLOAT = 1e30
"""Largest value of the other numbers, which are used in float32."""


@dataclass(frozen=True)
class Family:
    """One family's differences from LLaMA.

    Attributes:
      title: name of its models in prose.
      model_type: its name in config.json.
      architecture: its class in config.json.
      defaults: defaults of optional fields of config.json that differ from LLaMA's.
      biases: projections that always have a bias.
      optional_biases: by a boolean field of config.json, the projections that have a bias if it is true.
      qk_norm: whether query and key heads are normalised.
      window: "none"; "always", if `sliding_window` alone decides; or "switched", if `use_sliding_window` must be true
        and only layers from `max_window_layers` on have a window.
    """

    title: str
    model_type: str
    architecture: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    biases: tuple[str, ...] = ()
    optional_biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    qk_norm: bool = False
    window: str = "none"


FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            title="LLaMA",
            model_type="llama",
            architecture="LlamaForCausalLM",
            optional_biases={"attention_bias": ATTENTION_BIASES, "mlp_bias": MLP_BIASES},
        ),
        Family(
            title="Mistral",
            model_type="mistral",
            architecture="MistralForCausalLM",
            defaults={"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131_072},
            window="always",
        ),
        Family(
            title="Qwen2",
            model_type="qwen2",
            architecture="Qwen2ForCausalLM",
            defaults={"num_key_value_heads": 32, "sliding_window": 4096, "max_position_embeddings": 32_768},
            biases=("q", "k", "v"),
            window="switched",
        ),
        Family(
            title="Qwen3",
            model_type="qwen3",
            architecture="Qwen3ForCausalLM",
            defaults={
                "num_key_value_heads": 32,
                "head_dim": 128,
                "sliding_window": 4096,
                "max_position_embeddings": 32_768,
            },
            optional_biases={"attention_bias": ATTENTION_BIASES},
            qk_norm=True,
            window="switched",
        ),
    )
}
"""By `model_type`. TinyLLaMA and LLaMA 1-3 are "llama"; Qwen2.5 is "qwen2"."""


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """The fields of `config.json` for an architecture, in the layout that both transformers 4 and 5 read.

    Args:
      config: the architecture.
    """
    family = FAMILIES[config.family]
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
    fields = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
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
    }
    for name, projections in family.optional_biases.items():
        fields[name] = projections[0] in config.biases
    if family.window != "none":
        fields["sliding_window"] = config.sliding_window
    if family.window == "switched":
        fields |= {"use_sliding_window": config.sliding_window is not None, "max_window_layers": 0}
    return fields


def read_config(path: Path) -> ModelConfig:
    """The architecture that a `config.json` describes; absent optional fields have their family's defaults.

    Args:
      path: path of the file.

    Raises:
      InputError: the file cannot be read, or describes a model that this package does not compute exactly.
    """
    fields = read_json(path)
    family = _family(fields, path)
    fields = {**family.defaults, **fields}
    _refuse_what_is_not_computed(fields, family, path)

    def count(name: str, default: int | None = None) -> int:
        return int(_positive(fields, name, path, default=default, whole=True))

    width, heads, layers = count("hidden_size"), count("num_attention_heads"), count("num_hidden_layers")
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
    switched_on = [projections for name, projections in family.optional_biases.items() if fields.get(name)]
    return ModelConfig(
        vocabulary=count("vocab_size"),
        width=width,
        feed_forward=count("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        norm_epsilon=_positive(fields, "rms_norm_eps", path, default=1e-6),
        tied_head=fields.get("tie_word_embeddings") or False,
        max_length=count("max_position_embeddings", 2048),
        family=family.model_type,
        biases=sum(switched_on, family.biases),
        qk_norm=family.qk_norm,
        sliding_window=_sliding_window(fields, family, layers, path),
    )


def _family(fields: Mapping[str, Any], path: Path) -> Family:
    """The family named in a `config.json`."""
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(f'"{name}" ({family.title})' for name, family in FAMILIES.items())
        raise InputError(
            f"model_type {shown(model_type)} in {path} is not supported; choose a model where it is one of {known}."
        )
    return FAMILIES[model_type]


def _refuse_what_is_not_computed(fields: Mapping[str, Any], family: Family, path: Path) -> None:
    """Raise `InputError` for settings that would be computed wrongly; an absent or null field has its usual value."""
    if fields.get("quantization_config") is not None:
        method = fields["quantization_config"]
        method = method.get("quant_method", "unknown") if isinstance(method, dict) else method
        raise InputError(
            f"the weights beside {path} are stored quantised by {shown(method)}, which is not supported; give the model's "
            "16-bit weights, which the option quantization packs on loading."
        )
    accepted: dict[str, tuple[Any, ...]] = {
        "hidden_act": ("silu", None),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "tie_word_embeddings": (False, True, None),
        "use_sliding_window": (False, True, None),
    }
    accepted |= dict.fromkeys(family.optional_biases, (False, True, None))
    for name, values in accepted.items():
        if fields.get(name) not in values:
            wanted = " or ".join(json.dumps(value) for value in values if value is not None)
            raise InputError(
                f"{name} {shown(fields.get(name))} in {path} is not supported; choose a {family.title} "
                f"model where it is {wanted} or absent."
            )


def _sliding_window(fields: Mapping[str, Any], family: Family, layers: int, path: Path) -> int | None:
    """The window of all layers; refuses a model in which only some layers have one, because layers must be alike."""
    if family.window == "none" or fields.get("sliding_window") is None:
        return None
    if family.window == "switched" and not fields.get("use_sliding_window"):
        return None
    window = int(_positive(fields, "sliding_window", path, whole=True))
    if family.window == "always":
        return window
    kinds = fields.get("layer_types")
    if kinds is not None and not (
        isinstance(kinds, list) and len(kinds) == layers and all(isinstance(kind, str) for kind in kinds)
    ):
        raise InputError(
            f"layer_types {shown(kinds)} in {path} does not name the kind of each of the {layers} layers; correct the "
            "config."
        )
    if kinds is None:
        first = fields.get("max_window_layers")
        first = 28 if first is None else first
        if type(first) is not int:
            raise InputError(f"max_window_layers {shown(first)} in {path} is not a whole number; correct the config.")
        kinds = ["full_attention" if layer < first else "sliding_attention" for layer in range(layers)]
    if len(set(kinds)) > 1:
        raise InputError(
            f"layer_types in {path} mixes {' and '.join(sorted(set(kinds)))}, which is not supported because fused layers "
            "could be neither; set use_sliding_window to false, which changes nothing for texts shorter than the window."
        )
    return window if kinds[0] == "sliding_attention" else None


def _rope(fields: Mapping[str, Any], path: Path) -> tuple[float, RopeScaling | None]:
    """Base and scaling of the rotary positions.

    Up to transformers 4 they are the number `rope_theta` and the object `rope_scaling`; from 5 on both are in the
    object `rope_parameters`. If all are present, transformers 5 uses `rope_scaling`, and so does this function.
    """
    rope = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise InputError(f"rope_scaling {shown(rope)} in {path} is not an object; correct the config.")
    theta = _positive(fields, "rope_theta", path, default=10_000.0)
    theta = _positive(rope, "rope_theta", path, default=theta)
    rotated = _positive(fields, "partial_rotary_factor", path, default=1.0)
    rotated = _positive(rope, "partial_rotary_factor", path, default=rotated)
    if rotated != 1.0:
        raise InputError(
            f"partial_rotary_factor {rotated} in {path} is not supported; choose a model where it is 1.0 or absent."
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
        f'rope_type {shown(kind)} in {path} is not supported; choose a model where it is "default", "linear" or "llama3".'
    )


def _positive(
    fields: Mapping[str, Any],
    name: str,
    path: Path,
    *,
    default: float | None = None,
    whole: bool = False,
) -> float:
    """A positive number of a config; `default` is used if the field is absent or null."""
    value = fields.get(name)
    value = default if value is None else value
    if value is None:
        raise InputError(f"{name} is missing from {path}; add it.")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf or (whole and value % 1):
        raise InputError(f"{name} {shown(value)} in {path} is not a positive {'whole ' * whole}number; correct the config.")
    if value > (most := LARGEST.get(name, LARGEST_FLOAT)):
        raise InputError(f"{name} {shown(value)} in {path} exceeds {most:,}, more than any model has; correct the config.")
    return value
