"""The trained part of a model: low-rank factors beside the frozen projections, and what some methods add to them.

A low-rank update is applied as two small products beside the frozen one, `x @ W + scale * (x @ a) @ b`, never as
`W + a @ b`: under a `vmap` over clients the merged form would give every client a private copy of `W`. Here `a [in, r]` is
the transpose of PEFT's A and `b [r, out]` of its B (Hu et al. 2022).

Axis letters: L layers, r rank, t width of a layer's token.
"""

import jax
import jax.numpy as jnp
from flax import struct

from devft_jax.models.hypernetwork import HyperAdapter


class LoraFactors(struct.PyTreeNode):
    """Low-rank factors of one projection in every layer.

    Attributes:
      a: [L, in, r], multiplies the input.
      b: [L, r, out], gives the output.
    """

    a: jax.Array
    b: jax.Array


class Adapter(struct.PyTreeNode):
    """What is added to a frozen base. An adapter of fewer layers than its base belongs to the last of them.

    Attributes:
      lora: factors by projection.
      scale: multiplies their product: alpha / r, one scalar for all, or for each projection one value per layer `[L]`, as
        adapters whose rank or alpha varies need it (their factors are padded with zeros to the largest rank).
      dropout: probability of dropping an element of a low-rank product's input while training.
      delta: dense corrections of frozen weights by projection, f32[L, in, out], for methods that change these from round to
        round. They are kept beside the weights because a packed or half-precision weight would lose a change that is small
        against it.
      hyper: makes bottleneck adapters behind every sublayer from the prompt (`devft_jax.models.hypernetwork`).
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
        """The layers that it has factors, corrections or tokens for.

        Args:
          otherwise: the depth of an adapter that has none of them.
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
