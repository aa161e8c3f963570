"""The options of adapters and of the storage of the frozen weights, which can be read without importing JAX."""

import math
from dataclasses import dataclass
from typing import Literal

from devft_jax.errors import InputError
from devft_jax.models.architecture import PROJECTIONS
from devft_jax.options import Need, check_options, option

BITS = {"int8": 8, "int4": 4, "nf4": 4}
"""Bits per code, by the name of the kind."""
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Data types of weights that are read and written, by safetensors' names."""
REMAT = ("none", "full", "dots")
"""What the backward pass can recompute."""
GIVEN_ALPHA = Need(
    lambda config: config.alpha != "auto",
    "has no effect with alpha auto, which gives the scale 2 at any rank",
    "give --alpha",
)


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Low-rank adaptation of the frozen model."""

    rank: int = option(32, at_least=1, at_most=2**16, remedy="use 1 or more, such as 32")
    """Rank r of the low-rank update of each adapted projection."""
    alpha: float | Literal["auto"] = option("auto", above=0, remedy="auto, twice the rank, is usual")
    """Numerator of the update's scale alpha / rank: a number, or auto, twice the rank. Clients with other ranks have
    the same scale."""
    rslora: bool = option(False, needs=[GIVEN_ALPHA])
    """Scale the update by alpha / sqrt(rank), as in rsLoRA, instead of alpha / rank: the size of its first steps then does
    not fall with the rank."""
    initialization: str = option("lora", choices=("lora", "pissa", "lora-ga"))
    """Where the factors begin: at a random a and b = 0 (lora), or beside what is left of each weight at its principal
    directions (pissa) or at those of the loss's gradient on public text, `probe_data` (lora-ga)."""
    dropout: float = option(0.05, within="[0, 1)", remedy="0.05 is usual")
    """Probability of dropping an input element of the low-rank product while training."""
    targets: tuple[str, ...] = option(("q", "v"), choices=PROJECTIONS, each_once=True)
    """Adapted projections, any of q, k, v, o, gate, up, down."""


@dataclass(frozen=True, kw_only=True)
class QuantizationOptions:
    """Storage of the frozen weights."""

    quantization: str = option("none", choices=("none", *BITS))
    """Storage of the frozen projections: none (floats), or packed int8, int4 or nf4 with a float16 scale per block of 64."""
    fused_precision: str = option("packed", choices=("packed", "float"), of="growth")
    """A stage's fused layers if the base is quantised: packed like the base, or float (stored in `dtype`)."""
    fuse_from: str = option("packed", choices=("packed", "original"), of="growth")
    """From which weights a stage is grouped and fused if the base is quantised: its packed weights, expanded, or the model's
    original weights, which are then read into host memory at every stage."""


def validate_quantization(options: QuantizationOptions) -> None:
    """Raise `InputError` for an unknown choice, or one that needs a quantised base without one.

    Args:
      options: the options to check.
    """
    check_options(options)
    for name in ("fused_precision", "fuse_from"):
        if options.quantization == "none" and getattr(options, name) != "packed":
            raise InputError(
                f"{name} '{getattr(options, name)}' needs a quantised base and quantization is none; name one, or "
                f"leave {name} out."
            )


def resolve_alpha(options: LoraOptions) -> float:
    """alpha as a number: the option's value, or the one that gives the scale 2, which is twice the rank without `rslora`.

    Args:
      options: the adapter's options.
    """
    return 2.0 * scale_divisor(options) if options.alpha == "auto" else options.alpha


def scale_divisor(options: LoraOptions) -> float:
    """The divisor of alpha in the update's scale: r, or sqrt(r) in rsLoRA (Kalajdzievski, arXiv:2312.03732, 2023).

    Args:
      options: the adapter's options.
    """
    return math.sqrt(options.rank) if options.rslora else options.rank


def lora_scale(options: LoraOptions) -> float:
    """The scale of the update, alpha / r, or alpha / sqrt(r) with `rslora`.

    Args:
      options: the adapter's options.
    """
    return resolve_alpha(options) / scale_divisor(options)
