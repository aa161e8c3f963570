"""Floating-point operations of low-rank training on a frozen base, counted from shapes.

A multiply-add is two operations. Only products are counted: norms, activations and softmax are a few per cent of a small
model and less of a large one. A product with frozen weights is done once forward and once backward (the gradient of its
inputs), the latter in the adapted layers alone, since nothing below the lowest of them depends on what trains; a low-rank
factor that trains needs a third (its own gradient). Attention scores and mixtures are counted over the whole square, and
twice again in the backward pass, also by a kernel that leaves out what no query sees; the head is counted at every token,
also where only completions are scored. The gradient of the inputs of q, k and v in the lowest adapted layer is counted too,
although nothing needs it: one scan runs all adapted layers, so that it is computed, and to save it that layer would be
compiled by itself in every program. By these formulas it is 2.6 % of a step of four layers of LLaMA-2-7B and 0.4 % of all 32
(rank 32 on q and v, 256 tokens). Weights that a hypernetwork makes for an example count like
low-rank factors that train, and making them once for every example; what a batch shares is not counted. Nor is
rematerialisation, nor a dense correction of frozen weights, which a client adds to them once: the figure is the work of the
method, not of a way to simulate it.
"""

from dataclasses import dataclass
from typing import Any, Self

import jax

from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from devft_jax.models.hypernetwork import products


@dataclass(frozen=True)
class Adaptation:
    """What is trained on a frozen model, in numbers.

    Attributes:
      depth: adapted layers, the model's last ones.
      factors: elements of their low-rank factors.
      trained: elements that are trained, all of the factors' or some.
      example: products of an example, whatever its length, with weights that are trained.
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
          train: its trained leaves, arrays or shapes.
          layers: the depth of its base.
        """
        factors, trained = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (adapter.lora, train))
        depth = adapter.depth(otherwise=layers)
        if adapter.hyper is not None:
            token, example, _ = products(adapter.hyper.network)
            return cls(depth, token, token, example)
        return cls(depth, factors, trained)


def forward_breakdown(config: ModelConfig, *, layers: int, adaptation: Adaptation, length: int) -> dict[str, int]:
    """Operations of one forward pass per token position, by what they are spent on.

    Args:
      config: the base's architecture.
      layers: of the (sub)model that runs.
      adaptation: its adapter.
      length: positions T of a row, padding included.

    Returns:
      `frozen` (the projections' weights), `low_rank` (x a b, and what a hypernetwork makes), `attention` (scores and
        mixtures) and `head`.
    """
    weights = sum(fan_in * fan_out for fan_in, fan_out in map(config.projection_shape, PROJECTIONS))
    return {
        "frozen": layers * 2 * weights,
        "low_rank": 2 * adaptation.factors + 2 * adaptation.example // max(length, 1),
        "attention": layers * 4 * length * config.heads * config.head_size,
        "head": 2 * config.width * config.vocabulary,
    }


def training_breakdown(
    config: ModelConfig, *, layers: int, adaptation: Adaptation, length: int, frozen: int = 0
) -> dict[str, int]:
    """Operations of one training step per token position, forward and backward, by what they are spent on.

    Args:
      config: as in `forward_breakdown`.
      layers: as in `forward_breakdown`.
      adaptation: as in `forward_breakdown`.
      length: as in `forward_breakdown`.
      frozen: how many of the lowest adapted layers do not learn, and so have no backward pass; `adaptation` counts them
        among the trained ones, all layers alike.

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
    """Operations of a forward pass through the lowest layers alone, without adapter and head, per token position."""
    forward = forward_breakdown(config, layers=layers, adaptation=Adaptation(0, 0, 0), length=length)
    return forward["frozen"] + forward["attention"]


def evaluation_flops(config: ModelConfig, *, layers: int, adaptation: Adaptation, length: int) -> int:
    """Operations of scoring one held-out token position, a forward pass: the sum of `forward_breakdown`."""
    return sum(forward_breakdown(config, layers=layers, adaptation=adaptation, length=length).values())
