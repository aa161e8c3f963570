"""The loss of an untuned submodel, its gradient, and the alignment of that gradient with the full model's.

LoRA trains W + s a b from b = 0, where the gradient of a is zero and that of b is s a^T G with G = dL/dW of the frozen
projection. Its rows are random projections of G: with independent entries of a the mean of <s a^T G, s a^T H> over a is
c <G, H>, with the same c for all G and H. The alignment is therefore computed from the full gradients G of the adapted
projections, which is the cosine of LoRA's gradients without the noise of a draw of a, and the same for every rank.

    alignment = <G, P(g)> / (||G|| ||P(g)||),    sums over all adapted projections of all L layers

G [L, in, out] is the full model's gradient, g [G, in, out] the submodel's, and P transfers g to the layers of the full model
as the growth transfers what a submodel learned (`inherit`): layers that get nothing back have a zero gradient. It is the
first-order decrease of the full model's loss by a step of a given length in the submodel's direction, relative to a step of
that length in the full model's own. `alignment_kept` is the same with g only in the first layer of every group.

G is measured as the gradient of a dense correction of the frozen weights (`Adapter.delta`) at zero. It is thus computed in
the forward and backward pass of training, also on a packed base.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from devft_jax.data import Examples, evaluation_batches
from devft_jax.developmental import LayerMap, inherit
from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.llama import Compute
from devft_jax.models.loss import completion_loss
from devft_jax.models.sharding import partition_specs, place
from devft_jax.runtime.compiled import CompiledPrograms, shared_programs
from devft_jax.runtime.devices import CLIENT_AXIS, MODEL_AXIS, OVER_DEVICES

Gradient = dict[str, np.ndarray]
"""The gradient of the mean loss of the answers' tokens, f32[L, in, out] of every projection."""


@dataclass(frozen=True)
class Slope:
    """Loss and gradient of one model.

    Attributes:
      loss: mean negative log-likelihood of the answers' tokens, nats.
      gradient: of the adapted projections in the layers that have an adapter.
    """

    loss: float
    gradient: Gradient


@shared_programs
def jit_slope(config: ModelConfig, compute: Compute, mesh: Mesh) -> jax.stages.Wrapped:
    """(base, corrections, sums so far, tokens i32[B, T], mask bool[B, T]) -> the sums, with those of these examples added.

    A sum is (negative log-likelihood of the answers' tokens f32[], its gradient with respect to the corrections).
    """

    def of_device(base: Base, delta: dict[str, jax.Array], tokens: jax.Array, mask: jax.Array) -> tuple:
        def loss(delta: dict[str, jax.Array]) -> jax.Array:
            adapter = Adapter(lora={}, scale=jnp.float32(1.0), delta=delta)
            # The sum, not the mean, so that batches add up.
            return completion_loss(config, base, adapter, tokens, mask, compute=compute, count=jnp.int32(1))

        return jax.lax.psum(jax.value_and_grad(loss)(delta), (CLIENT_AXIS, MODEL_AXIS))

    def slope(base: Base, delta: dict[str, jax.Array], sums: tuple, tokens: jax.Array, mask: jax.Array) -> tuple:
        specs = (partition_specs(base), PartitionSpec(), OVER_DEVICES, OVER_DEVICES)
        over_devices = jax.shard_map(of_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
        return jax.tree.map(jnp.add, sums, over_devices(base, delta, tokens, mask))

    return jax.jit(slope, donate_argnums=2)


class Slopes:
    """Measures models on one set of examples, which are divided over the devices.

    Args:
      config: the architecture at full depth.
      compute: how models are executed.
      examples: the data.
      targets: the adapted projections.
      lengths: padded lengths, ascending.
      rows: examples run at once, rounded up to a multiple of the devices.
      mesh: the devices.
      programs: keeps compiled programs.

    Attributes:
      tokens: number of the answers' tokens.
    """

    def __init__(
        self,
        config: ModelConfig,
        compute: Compute,
        examples: Examples,
        *,
        targets: Sequence[str],
        lengths: Sequence[int],
        rows: int,
        mesh: Mesh,
        programs: CompiledPrograms,
    ):
        self._config, self._compute, self._targets = config, compute, targets
        self._mesh, self._programs = mesh, programs
        at_once = -(-min(rows, len(examples)) // mesh.size) * mesh.size
        self._batches = [(tokens, mask) for _, tokens, mask in evaluation_batches(examples, at_once, lengths)]
        self.tokens = sum(int(mask.sum()) for _, mask in self._batches)

    def __call__(self, base: Base, layers: int) -> Slope:
        """Measure one model.

        Args:
          base: the model, on the devices.
          layers: number of its last layers that have an adapter.
        """
        program = jit_slope(self._config, self._compute, self._mesh)

        def zeros() -> dict[str, np.ndarray]:
            return {name: np.zeros((layers, *self._config.projection_shape(name)), np.float32) for name in self._targets}

        delta, sums = place((zeros(), (np.zeros((), np.float32), zeros())), self._mesh)
        split = NamedSharding(self._mesh, OVER_DEVICES)
        for batch in self._batches:
            sums = self._programs.call("probe", program, base, delta, sums, *jax.device_put(batch, split))
        loss, gradient = jax.device_get(sums)
        return Slope(float(loss) / self.tokens, jax.tree.map(lambda leaf: leaf / np.float32(self.tokens), gradient))


def alignment(layer_map: LayerMap, submodel: Gradient, full: Gradient, *, mode: str) -> float:
    """The cosine of the full model's gradient and a submodel's after its transfer; 0 if one of them is zero.

    Args:
      layer_map: the submodel's map.
      submodel: by projection, f32[G, in, out].
      full: by projection, f32[L, in, out].
      mode: how it is transferred, as in `inherit`.
    """
    product = square = 0.0
    for name, gradient in full.items():
        transferred = inherit(layer_map, submodel[name], np.zeros_like(gradient), mode=mode)
        product += layer_products(gradient, transferred).sum()
        square += layer_products(transferred, transferred).sum()
    lengths = np.sqrt(square * sum(layer_products(gradient, gradient).sum() for gradient in full.values()))
    return float(product / lengths) if lengths else 0.0


def layer_products(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Inner products of the layers of two leaves, f64[L].

    Args:
      one: f32[L, ...].
      other: f32[L, ...].
    """
    return np.array([np.vdot(left, right) for left, right in zip(one, other, strict=True)], np.float64)


def gradient_shares(full: Gradient) -> np.ndarray:
    """The share of every layer in the squared norm of a gradient, f64[L].

    Args:
      full: by projection, f32[L, in, out].
    """
    squares = np.sum([layer_products(gradient, gradient) for gradient in full.values()], axis=0)
    return np.asarray(squares / max(squares.sum(), np.finfo(np.float64).tiny))
