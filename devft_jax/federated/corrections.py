"""Dense corrections of frozen weights that grow by an increment in every round.

A method that adds to the base what its adapter cannot represent keeps

    W_t = W + D_t,    D_t = D_{t-1} + I_t,

with D in float32 beside the weights, which are not changed. The increment I_t is sent in the next downlink, as two
low-rank factors or dense. Server and clients add the same increment, rounded to the messages' dtype, so that all of
them have the same D; what a client knows before the message of a round is D_{t-1}.

At the end of a stage every layer of a group gets the change that the stage made to the group's D. The last increment, which
no message of the stage has contained, is kept separately at full depth too. It is sent in the next stage if the layers of
that stage are layers of the model. A stage that fuses layers begins with all of D in them, and that one increment is not
counted as a separate message.
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
"""By projection, in the messages' dtype: factors [L, in, r], [L, r, out] or the whole [L, in, out]; empty for none."""


class Correction(struct.PyTreeNode):
    """D and its last increment.

    Attributes:
      delta: D of the round before the last, {projection: f32[L, in, out]}.
      increment: the increment of the last round.
    """

    delta: dict[str, jax.Array]
    increment: Increment

    def total(self) -> dict[str, jax.Array]:
        """D including the last increment."""
        return corrected(self.delta, self.increment)

    def followed_by(self, increment: Increment) -> "Correction":
        """The correction one round later.

        Args:
          increment: the increment of the next round.
        """
        return Correction(delta=self.total(), increment=increment)


def corrected(delta: dict[str, jax.Array], increment: Increment) -> dict[str, jax.Array]:
    """D plus an increment, computed in the same way by server and clients.

    Args:
      delta: D.
      increment: the increment to add.
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
      model: the architecture of the model.
      targets: projections that are corrected.
    """
    return {name: jnp.zeros((model.layers, *model.projection_shape(name)), jnp.float32) for name in targets}


def keeps_increment(layer_map: LayerMap) -> bool:
    """Whether an increment that has not been sent yet can be sent in this stage, whose layers are layers of the model.

    Args:
      layer_map: the stage's map.
    """
    return layer_map.selected() is not None


def stage_correction(full: Correction, layer_map: LayerMap) -> Correction:
    """The correction of a stage's submodel.

    Args:
      full: the correction at full depth.
      layer_map: the stage's map.
    """
    if keeps_increment(layer_map):
        return fuse(layer_map, full)
    depth = layer_map.num_groups
    increment = jax.tree.map(lambda leaf: jnp.zeros((depth, *leaf.shape[1:]), leaf.dtype), full.increment)
    return Correction(delta=fuse(layer_map, full.total()), increment=increment)


def returned_correction(full: Correction, stage: Correction, layer_map: LayerMap) -> Correction:
    """The full-depth correction after a stage.

    Args:
      full: the correction at full depth before the stage.
      stage: the stage's correction after training.
      layer_map: the stage's map.
    """
    delta = inherit(layer_map, stage.delta, full.total(), mode="delta")
    if not full.increment:
        return Correction(delta=delta, increment={})
    nothing = jax.tree.map(jnp.zeros_like, full.increment)
    return Correction(delta=delta, increment=inherit(layer_map, stage.increment, nothing, mode="copy"))
