"""Floating-point operations of low-rank training on a frozen base, counted from shapes.

A multiply-add is two operations. Only products are counted: norms, activations and softmax are a few per cent of a small
model and less of a large one. The frozen weights need two products a step (forward, and the gradient of their inputs), the
low-rank factors three (their own gradients besides); attention scores and mixtures are counted over the whole square, as
they are computed, and twice again in the backward pass. Layers below the lowest that learns have a forward pass alone.
Rematerialisation is not counted: the figure is the work of the method, not of a way to save memory.
"""

from collections.abc import Sequence
from typing import Any

from devft_jax.models.llama import PROJECTIONS, ModelConfig

# Products of one training step for each product of a forward pass: see the module's docstring.
TRAINING_PRODUCTS = {"frozen": 2, "low_rank": 3, "attention": 3, "head": 2}


def forward_breakdown(config: ModelConfig, *, layers: int, rank: int, targets: Sequence[str], length: int) -> dict[str, int]:
    """Operations of one forward pass per token position, by what they are spent on.

    Args:
      config: the base's architecture. layers: of the (sub)model that runs.
      rank, targets: of the adapter. length: positions T of a row, padding included.

    Returns:
      `frozen` (the projections' weights), `low_rank` (x a b), `attention` (scores and mixtures) and `head`.
    """
    shapes = {name: config.projection_shape(name) for name in PROJECTIONS}
    return {
        "frozen": layers * 2 * sum(fan_in * fan_out for fan_in, fan_out in shapes.values()),
        "low_rank": layers * 2 * rank * sum(sum(shapes[name]) for name in targets),
        "attention": layers * 4 * length * config.heads * config.head_size,
        "head": 2 * config.width * config.vocabulary,
    }


def training_breakdown(
    config: ModelConfig,
    *,
    layers: int,
    rank: int,
    targets: Sequence[str],
    length: int,
    frozen: int = 0,
    bare: int = 0,
) -> dict[str, int]:
    """Operations of one training step per token position, forward and backward; as `forward_breakdown`.

    Args:
      layers: with an adapter. frozen: the lowest of them, which do not learn and need no backward pass.
      bare: layers that run below them without an adapter, and without a backward pass.
    """

    def forward(layers: int, rank: int) -> dict[str, int]:
        return forward_breakdown(config, layers=layers, rank=rank, targets=targets, length=length)

    learning, kept, below = forward(layers - frozen, rank), forward(frozen, rank), forward(bare, 0)
    once = {name: kept[name] + below[name] for name in ("frozen", "low_rank", "attention")}
    return {name: TRAINING_PRODUCTS[name] * count + once.get(name, 0) for name, count in learning.items()}


def training_flops(config: ModelConfig, **shape: Any) -> int:
    """Operations of one training step per token position; as `training_breakdown`, summed."""
    return sum(training_breakdown(config, **shape).values())


def evaluation_flops(config: ModelConfig, *, layers: int, rank: int, targets: Sequence[str], length: int) -> int:
    """Operations of scoring one held-out token position, a forward pass alone; as `forward_breakdown`, summed."""
    return sum(forward_breakdown(config, layers=layers, rank=rank, targets=targets, length=length).values())
