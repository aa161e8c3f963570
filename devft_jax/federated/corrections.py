"""Dense corrections of frozen weights that grow by an increment in every round.

A method that adds to the base what its adapter cannot hold keeps

    W_t = W + D_t,    D_t = D_{t-1} + I_t,

with D in float32 beside the weights, which stay as they are stored. The increment I_t travels in the next downlink, as two
low-rank factors or dense. Server and clients add the same one, rounded to the dtype in which it travels, so that all of
them know the same D; what a client knows before the message of a round is D_{t-1}.

At a stage's end every layer of a group gets the change that the stage made to the group's D. The last increment, which no
message of the stage has carried, is kept apart at full depth too. It travels in the next stage if the layers of that one are
layers of the model. A stage that fuses layers begins with all of D in them, and that one increment is not counted as a
message of its own.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import struct

from devft_jax.developmental import LayerMap, fuse, inherit
from devft_jax.federated.aggregation import product
from devft_jax.models.adapter import LoraFactors
from devft_jax.models.architecture import ModelConfig

Increment = Mapping[str, LoraFactors | jax.Array]
"""Of each projection, in the dtype of messages: factors [L, in, r], [L, r, out] or the whole [L, in, out]; none for none."""


class Correction(struct.PyTreeNode):
    """D and its last increment.

    Attributes:
      delta: D of the round before the last, {projection: f32[L, in, out]}.
      increment: of the last round.
    """

    delta: dict[str, jax.Array]
    increment: Increment

    def total(self) -> dict[str, jax.Array]:
        """D with the last increment in it."""
        return corrected(self.delta, self.increment)

    def followed_by(self, increment: Increment) -> "Correction":
        """The correction one round later.

        Args:
          increment: of the next round.
        """
        return Correction(delta=self.total(), increment=increment)


def corrected(delta: dict[str, jax.Array], increment: Increment) -> dict[str, jax.Array]:
    """D with an increment added, by server and client alike.

    Args:
      delta: D.
      increment: what is added.
    """

    def one(name: str, leaf: jax.Array) -> jax.Array:
        if name not in increment:
            return leaf
        added = increment[name]
        return leaf + (product(added) if isinstance(added, LoraFactors) else added.astype(jnp.float32))

    return {name: one(name, leaf) for name, leaf in delta.items()}


def no_delta(model: ModelConfig, targets: tuple[str, ...]) -> dict[str, jax.Array]:
    """D before the first round.

    Args:
      model: the shape of the model.
      targets: projections that are corrected.
    """
    return {name: jnp.zeros((model.layers, *model.projection_shape(name)), jnp.float32) for name in targets}


def keeps_increment(layer_map: LayerMap) -> bool:
    """Whether an increment that has not travelled yet can do so in this stage, whose layers are layers of the model.

    Args:
      layer_map: of the stage.
    """
    return layer_map.selected() is not None


def stage_correction(full: Correction, layer_map: LayerMap) -> Correction:
    """The correction of a stage's submodel.

    Args:
      full: at full depth.
      layer_map: of the stage.
    """
    if keeps_increment(layer_map):
        return fuse(layer_map, full)
    depth = layer_map.num_groups
    increment = jax.tree.map(lambda leaf: jnp.zeros((depth, *leaf.shape[1:]), leaf.dtype), full.increment)
    return Correction(delta=fuse(layer_map, full.total()), increment=increment)


def returned_correction(full: Correction, stage: Correction, layer_map: LayerMap) -> Correction:
    """The full-depth correction after a stage.

    Args:
      full: at full depth before the stage.
      stage: after its training.
      layer_map: of the stage.
    """
    delta = inherit(layer_map, stage.delta, full.total(), mode="delta")
    if not full.increment:
        return Correction(delta=delta, increment={})
    nothing = jax.tree.map(jnp.zeros_like, full.increment)
    return Correction(delta=delta, increment=inherit(layer_map, stage.increment, nothing, mode="copy"))
