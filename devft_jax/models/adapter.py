"""The trained part of a model: low-rank factors beside the frozen projections, and additions of some methods.

A low-rank update is applied as two small products beside the frozen one, `x @ W + scale * (x @ a) @ b`, never as
`W + a @ b`: with a `vmap` over clients the merged form would give every client its own copy of `W`. `a [in, r]` is the
transpose of PEFT's A and `b [r, out]` that of its B (Hu et al. 2022).

Axis letters: L layers, r rank, t width of a layer's token.
"""

import jax
import jax.numpy as jnp
from flax import struct

from devft_jax.models.hypernetwork import HyperAdapter


class LoraFactors(struct.PyTreeNode):
    """Low-rank factors of one projection in every layer.

    Attributes:
      a: [L, in, r], multiplied with the input.
      b: [L, r, out], multiplied with x a.
    """

    a: jax.Array
    b: jax.Array


class Adapter(struct.PyTreeNode):
    """What is added to a frozen base. An adapter with fewer layers than its base belongs to the base's last layers.

    Attributes:
      lora: factors by projection.
      scale: factor of their product: alpha / r, one scalar for all, or one value per layer `[L]` for each projection, for
        adapters whose rank or alpha varies (their factors are padded with zeros to the largest rank).
      dropout: probability of dropping an element of a low-rank product's input while training.
      delta: dense corrections of frozen weights by projection, f32[L, in, out], for methods that change these between
        rounds. They are stored separately, because a packed or half-precision weight would lose a relatively small change.
      hyper: generates bottleneck adapters after every sublayer from the prompt (`devft_jax.models.hypernetwork`).
    """

    lora: dict[str, LoraFactors]
    scale: jax.Array | dict[str, jax.Array]
    dropout: float = struct.field(pytree_node=False, default=0.0)
    delta: dict[str, jax.Array] = struct.field(default_factory=dict)
    hyper: HyperAdapter | None = None

    @property
    def layer_tokens(self) -> jax.Array | None:
        """The hypernetwork's token for each layer, f32[L, t]; None without a hypernetwork."""
        return None if self.hyper is None else self.hyper.network.layer_tokens

    def depth(self, otherwise: int) -> int:
        """Number of layers for which it has factors, corrections or tokens.

        Args:
          otherwise: the result for an adapter that has none of them.
        """
        leaves = jax.tree.leaves((self.lora, self.delta, self.layer_tokens))
        return leaves[0].shape[0] if leaves else otherwise


def layer_scales(adapter: Adapter, depth: int) -> dict[str, jax.Array]:
    """The scale of every adapted projection in each layer, f32[L].

    Args:
      adapter: the adapter.
      depth: L, its number of layers.
    """
    if isinstance(adapter.scale, dict):
        return adapter.scale
    return {name: jnp.broadcast_to(adapter.scale, (depth,)) for name in adapter.lora}
