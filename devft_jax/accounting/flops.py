"""Floating-point operations of low-rank training on a frozen base, counted from shapes.

A multiply-add is two operations. Only products are counted: norms, activations and softmax are a few per cent of a small
model and less of a large one. The frozen weights need two products a step (forward, and the gradient of their inputs), the
low-rank factors three (their own gradients besides); attention scores and mixtures are counted over the whole square, as
they are computed, and twice again in the backward pass. Rematerialisation is not counted: the figure is the work of the
method, not of a way to save memory.
"""

from collections.abc import Sequence

from devft_jax.models.llama import PROJECTIONS, ModelConfig


def training_flops(config: ModelConfig, *, layers: int, rank: int, targets: Sequence[str], length: int) -> int:
    """Operations of one training step per token position.

    Args:
      config: the base's architecture. layers: of the (sub)model that is trained.
      rank, targets: of the adapter. length: positions T of a row, padding included.
    """
    shapes = {name: config.projection_shape(name) for name in PROJECTIONS}
    frozen = sum(fan_in * fan_out for fan_in, fan_out in shapes.values())
    low_rank = sum(rank * sum(shapes[name]) for name in targets)
    attention = 2 * length * config.heads * config.head_size
    per_layer = 2 * 2 * frozen + 3 * 2 * low_rank + 3 * 2 * attention
    head = 2 * 2 * config.width * config.vocabulary
    return layers * per_layer + head
