"""Floating-point operations of low-rank training on a frozen base, computed from shapes.

A multiply-add counts as two operations. Only matrix products are counted: norms, activations and softmax are a few per cent
of a small model and less of a large one. A product with frozen weights is computed once in the forward pass and once in the
backward pass (the gradient of its inputs), the latter only in the adapted layers, because no trained value lies below them.
A trained low-rank factor needs a third product (its own gradient). Attention scores and mixtures are counted over the whole
T x T square, and twice more in the backward pass, also for a kernel that skips masked pairs. The head is counted at every
token, also if only completions are scored. The gradient of the inputs of q, k and v in the lowest adapted layer is counted
although nothing uses it: one scan runs all adapted layers, so it is computed, and avoiding it would mean compiling
that layer separately in every program. By these formulas it is 2.6 % of a step of four layers of LLaMA-2-7B and 0.4 % of
all 32 (rank 32 on q and v, 256 tokens). Weights that a hypernetwork generates for an example count like trained low-rank
factors, plus generating them once per example; what a batch shares is not counted. Rematerialisation is not counted, nor is
a dense correction of frozen weights, which a client adds once: the figure is the work of the method, not of
one way to simulate it.
"""

from dataclasses import dataclass
from typing import Any, Self

import jax

from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from devft_jax.models.hypernetwork import products


@dataclass(frozen=True)
class Adaptation:
    """The trained part of a model on a frozen base, in numbers.

    Attributes:
      depth: adapted layers, the last ones of the model.
      factors: elements of their low-rank factors.
      trained: elements that are trained: all elements of the factors, or fewer.
      example: multiply-adds per example, independent of its length, with trained weights.
    """

    depth: int
    factors: int
    trained: int
    example: int = 0

    @classmethod
    def of(cls, adapter: Adapter, train: Any, layers: int) -> Self:
        """Count an adapter.

        Args:
          adapter: arrays or shapes.
          train: the adapter's trained leaves, arrays or shapes.
          layers: depth of the base.
        """
        factors, trained = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (adapter.lora, train))
        depth = adapter.depth(otherwise=layers)
        if adapter.hyper is not None:
            token, example, _ = products(adapter.hyper.network)
            return cls(depth, token, token, example)
        return cls(depth, factors, trained)


def layer_flops(config: ModelConfig, tokens: int) -> int:
    """Operations of one layer's products with frozen weights, in a forward pass of so many tokens."""
    weights = sum(fan_in * fan_out for fan_in, fan_out in map(config.projection_shape, PROJECTIONS))
    return 2 * weights * tokens


def forward_breakdown(config: ModelConfig, *, layers: int, adaptation: Adaptation, length: int) -> dict[str, int]:
    """Operations of one forward pass per token position, by component.

    Args:
      config: the base's architecture.
      layers: of the (sub)model that runs.
      adaptation: its adapter.
      length: positions T of a row, padding included.

    Returns:
      `frozen` (products with the projections' weights), `low_rank` (x a b, and weights from a hypernetwork), `attention`
        (scores and mixtures) and `head`.
    """
    return {
        "frozen": layers * layer_flops(config, 1),
        "low_rank": 2 * adaptation.factors + 2 * adaptation.example // max(length, 1),
        "attention": layers * 4 * length * config.heads * config.head_size,
        "head": 2 * config.width * config.vocabulary,
    }


def training_breakdown(
    config: ModelConfig, *, layers: int, adaptation: Adaptation, length: int, frozen: int = 0
) -> dict[str, int]:
    """Operations of one training step per token position, forward and backward, by component.

    Args:
      config: as in `forward_breakdown`.
      layers: as in `forward_breakdown`.
      adaptation: as in `forward_breakdown`.
      length: as in `forward_breakdown`.
      frozen: number of the lowest adapted layers that do not learn, and so have no backward pass; `adaptation` counts them
        as trained, like all other layers.

    Returns:
      As `forward_breakdown`.
    """
    learning = adaptation.depth - frozen
    forward = forward_breakdown(config, layers=layers, adaptation=adaptation, length=length)
    upper = forward_breakdown(config, layers=learning, adaptation=adaptation, length=length)
    factors = forward["low_rank"] + 2 * adaptation.trained + 2 * adaptation.example // max(length, 1)
    return {
        "frozen": forward["frozen"] + upper["frozen"],
        "low_rank": forward["low_rank"] + factors * learning // max(adaptation.depth, 1),
        "attention": forward["attention"] + 2 * upper["attention"],
        "head": 2 * forward["head"],
    }


def training_flops(config: ModelConfig, *, layers: int, adaptation: Adaptation, length: int, frozen: int = 0) -> int:
    """Operations of one training step per token position: the sum of `training_breakdown`."""
    return sum(training_breakdown(config, layers=layers, adaptation=adaptation, length=length, frozen=frozen).values())


def prefix_flops(config: ModelConfig, *, layers: int, length: int) -> int:
    """Operations of a forward pass through the lowest layers, without adapter and head, per token position."""
    forward = forward_breakdown(config, layers=layers, adaptation=Adaptation(0, 0, 0), length=length)
    return forward["frozen"] + forward["attention"]


def evaluation_flops(config: ModelConfig, *, layers: int, adaptation: Adaptation, length: int) -> int:
    """Operations of evaluating one token position, a forward pass: the sum of `forward_breakdown`."""
    return sum(forward_breakdown(config, layers=layers, adaptation=adaptation, length=length).values())
