"""The loss of a model and its gradient with respect to the adapted weights.

The gradient G = dL/dW is measured as that of a dense correction of the frozen weights (`Adapter.delta`), at zero or at
corrections that are there. It is thus computed in the forward and backward pass of training, also on a packed base.
`devft_jax.training.alignment` compares the gradients of submodels; `devft_jax.federated.gradient_directions` begins adapters
at them; `devft_jax.training.gain` ends stages by them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from devft_jax.accounting.flops import Adaptation, training_flops
from devft_jax.config.run_config import RunConfig
from devft_jax.data import Examples, evaluation_batches, fitted_lengths
from devft_jax.developmental import Growth
from devft_jax.federated.algorithm import Algorithm
from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.llama import Compute
from devft_jax.models.loss import completion_loss
from devft_jax.models.sharding import partition_specs, place
from devft_jax.runtime.compiled import CompiledPrograms, shared_programs
from devft_jax.runtime.devices import OVER_DEVICES

Gradient = dict[str, np.ndarray]
"""The gradient of the mean loss of the answers' tokens, f32[L, in, out] of every projection."""

ROWS = 4
"""Examples run at once by default, so that a pass of a small model takes about a gigabyte."""
LENGTHS = 2
"""Most padded lengths: every further one is another program to compile for every depth."""


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

    The sums are each device's own, [devices, ...]: (negative log-likelihood of the answers' tokens, its gradient with
    respect to the corrections). To add them up the devices would have to wait for each other, and devices of a CPU that
    share its threads can wait for ever.
    """

    def of_device(base: Base, delta: dict[str, jax.Array], sums: tuple, tokens: jax.Array, mask: jax.Array) -> tuple:
        def loss(delta: dict[str, jax.Array]) -> jax.Array:
            adapter = Adapter(lora={}, scale=jnp.float32(1.0), delta=delta)
            # The sum, not the mean, so that batches add up.
            return completion_loss(config, base, adapter, tokens, mask, compute=compute, count=jnp.int32(1))

        return jax.tree.map(lambda before, own: before + own, sums, jax.value_and_grad(loss)(delta))

    def slope(base: Base, delta: dict[str, jax.Array], sums: tuple, tokens: jax.Array, mask: jax.Array) -> tuple:
        specs = (partition_specs(base), PartitionSpec(), OVER_DEVICES, OVER_DEVICES, OVER_DEVICES)
        over_devices = jax.shard_map(of_device, mesh=mesh, in_specs=specs, out_specs=OVER_DEVICES, check_vma=False)
        return over_devices(base, delta, sums, tokens, mask)

    return jax.jit(slope, donate_argnums=2)


class Slopes:
    """Measures models on one set of examples, which are divided over the devices.

    Args:
      config: the architecture at full depth.
      compute: how models are executed.
      examples: the data.
      targets: the adapted projections.
      mesh: the devices.
      programs: keeps compiled programs.
      lengths: padded lengths, ascending; by default a few that fit the examples.
      rows: examples run at once, rounded up to a multiple of the devices; None for `ROWS`.

    Attributes:
      tokens: number of the answers' tokens.
      length: the longest padded length.
    """

    def __init__(
        self,
        config: ModelConfig,
        compute: Compute,
        examples: Examples,
        *,
        targets: Sequence[str],
        mesh: Mesh,
        programs: CompiledPrograms,
        lengths: Sequence[int] | None = None,
        rows: int | None = None,
    ):
        self._config, self._compute, self._targets = config, compute, targets
        self._mesh, self._programs = mesh, programs
        lengths = fitted_lengths(examples.lengths, LENGTHS) if lengths is None else lengths
        self.length = lengths[-1]
        at_once = -(-min(rows or ROWS, len(examples)) // mesh.size) * mesh.size
        self._batches = [(tokens, mask) for _, tokens, mask in evaluation_batches(examples, at_once, lengths)]
        self.tokens = sum(int(mask.sum()) for _, mask in self._batches)

    def __call__(self, base: Base, layers: int, corrections: Mapping[str, Any] | None = None) -> Slope:
        """Measure one model.

        Args:
          base: the model, on the devices.
          layers: number of its last layers that have an adapter.
          corrections: of the weights of these layers, at which the model is measured, f32[layers, in, out] of every adapted
            projection; None for the model itself.
        """
        program = jit_slope(self._config, self._compute, self._mesh)

        def zeros(*lead: int) -> dict[str, np.ndarray]:
            shapes = {name: self._config.projection_shape(name) for name in self._targets}
            return {name: np.zeros((*lead, layers, *shape), np.float32) for name, shape in shapes.items()}

        split, devices = NamedSharding(self._mesh, OVER_DEVICES), self._mesh.size
        delta = place(zeros() if corrections is None else jax.device_get(dict(corrections)), self._mesh)
        sums = jax.device_put((np.zeros(devices, np.float32), zeros(devices)), split)
        for batch in self._batches:
            sums = self._programs.call("slope", program, base, delta, sums, *jax.device_put(batch, split))
        loss, gradient = jax.tree.map(lambda leaf: leaf.sum(axis=0), jax.device_get(sums))
        return Slope(float(loss) / self.tokens, jax.tree.map(lambda leaf: leaf / np.float32(self.tokens), gradient))

    def flops(self, layers: int, depth: int) -> int:
        """Operations of measuring one model: its forward and backward pass, and the product for each weight's gradient.

        Args:
          layers: number of its last layers that have an adapter.
          depth: number of layers that it runs.
        """
        weights = layers * sum(math.prod(self._config.projection_shape(name)) for name in self._targets)
        dense = Adaptation(depth=layers, factors=0, trained=weights)

        def of_token(length: int) -> int:
            return training_flops(self._config, layers=depth, adaptation=dense, length=length)

        return sum(tokens.size * of_token(tokens.shape[1]) for tokens, _ in self._batches)


def reads_text(config: RunConfig, growth: Growth, algorithm: Algorithm) -> bool:
    """Whether a run reads public text: to measure layers or gradients on it, or to distil layers.

    Args:
      config: the run's configuration.
      growth: its growth.
      algorithm: its algorithm.
    """
    return _has_slopes(config, algorithm) or config.distil_steps > 0 or not growth.measured


def _has_slopes(config: RunConfig, algorithm: Algorithm) -> bool:
    return algorithm.orient is not None or config.stage_end == "gain"


def public_slopes(
    config: RunConfig,
    model: ModelConfig,
    algorithm: Algorithm,
    compute: Compute,
    examples: Examples | None,
    mesh: Mesh,
    programs: CompiledPrograms,
) -> Slopes | None:
    """What measures the gradients at which a run's factors begin, or by which its stages end; None if neither is so.

    Args:
      config: names the adapted projections, and what ends stages.
      model: the architecture at full depth.
      algorithm: what clients train and send.
      compute: how models are executed.
      examples: the public text, if the run reads it.
      mesh: the devices.
      programs: keeps compiled programs.
    """
    if examples is None or not _has_slopes(config, algorithm):
        return None
    own: dict[str, Any] = {"targets": config.targets, "rows": config.examples_per_pass, "mesh": mesh, "programs": programs}
    return Slopes(model, compute, examples, **own)
