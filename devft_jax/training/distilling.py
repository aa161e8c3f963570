"""Distillation on the server: a stage's fused layers learn on public text to do what the full model does.

    minimise  mean over tokens of  ||h_sub - h||^2 / ||h||^2

h [D] are the full model's final hidden states, before the head, and h_sub the submodel's, both without an adapter. Only rows
that fuse several layers are trained; rows that are one layer of the model stay as they are. Adam, with a rate that falls
linearly to zero. This is a repair of ours, in the spirit of LLM-Streamline (Chen et al., ICLR 2025), which trains one or two
layers in place of a run of layers; the paper has none.

What clients receive has the same size as without it. The server's operations are counted apart from the clients'. The
distilled layers are not stored: a resumed run makes them again, from the same text in the same order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from devft_jax.accounting.flops import prefix_flops
from devft_jax.data import Examples, fitted_lengths, gather_batch
from devft_jax.developmental import LayerMap
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base, Block
from devft_jax.models.llama import Compute, hidden_states
from devft_jax.runtime.compiled import CompiledPrograms, shared_programs
from devft_jax.training.probe import real_tokens

if TYPE_CHECKING:
    from devft_jax.training.parts import Parts

ROWS = 8
"""Examples of a step."""


def fused_rows(layer_map: LayerMap) -> np.ndarray:
    """The rows that fuse several layers: bool[G].

    Args:
      layer_map: the stage's map.
    """
    return np.count_nonzero(np.asarray(layer_map.fuse), axis=1) > 1


def is_distilled(layer_map: LayerMap) -> bool:
    """Whether a stage has fused layers, which can be distilled.

    Args:
      layer_map: the stage's map.
    """
    return bool(fused_rows(layer_map).any())


def distilling_flops(config: ModelConfig, layers: int, *, steps: int, length: int) -> int:
    """The server's operations for one stage: both models' forward passes, and the submodel's backward pass, which has two
    products for each one of the forward pass.

    Args:
      config: the architecture at full depth.
      layers: of the submodel.
      steps: number of steps.
      length: tokens of a padded row.
    """
    full, small = (prefix_flops(config, layers=each, length=length) for each in (config.layers, layers))
    return steps * ROWS * length * (full + 3 * small)


def mean_error(states: jax.Array, wanted: jax.Array, real: jax.Array) -> jax.Array:
    """The mean over real tokens of the squared error relative to the wanted states: f32[].

    Args:
      states: [B, T, D].
      wanted: [B, T, D].
      real: bool[B, T].
    """
    wide, aim = states.astype(jnp.float32), wanted.astype(jnp.float32)
    error = jnp.sum(jnp.square(wide - aim), axis=-1) / jnp.maximum(jnp.sum(jnp.square(aim), axis=-1), 1e-12)
    return jnp.sum(jnp.where(real, error, 0.0)) / jnp.sum(real, dtype=jnp.float32)


@shared_programs
def jit_step(config: ModelConfig, compute: Compute) -> jax.stages.Wrapped:
    """One step: (base, the submodel's layers, Adam's state, rows bool[G], rate, tokens, real) -> layers, state, error."""
    optimizer = optax.scale_by_adam()

    def step(
        base: Base,
        blocks: Block,
        state: Any,
        rows: jax.Array,
        rate: jax.Array,
        tokens: jax.Array,
        real: jax.Array,
    ) -> tuple:
        wanted = hidden_states(config, base, None, tokens, compute=compute)

        def loss(blocks: Block) -> jax.Array:
            small = base.replace(blocks=blocks)
            return mean_error(hidden_states(config, small, None, tokens, compute=compute), wanted, real)

        def own(leaf: jax.Array) -> jax.Array:
            return jnp.where(rows.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, 0.0)

        error, gradient = jax.value_and_grad(loss)(blocks)
        updates, state = optimizer.update(jax.tree.map(own, gradient), state)
        # Adam moves a row without gradient by exactly zero, so that it keeps its weights bit for bit.
        return optax.apply_updates(blocks, jax.tree.map(lambda leaf: -rate * leaf, updates)), state, error

    return jax.jit(step, donate_argnums=(1, 2))


@dataclass(frozen=True)
class Distiller:
    """Distils the fused layers of stages, on one device: then the result does not depend on how many there are, and devices
    that share threads do not wait for each other.

    Attributes:
      config: the architecture at full depth.
      compute: how models are executed.
      base: returns the full model's base on that device, when layers are distilled.
      examples: the public text.
      steps: number of steps.
      rate: Adam's first rate.
      seed: determines the order of the examples.
      programs: keeps compiled programs.
    """

    config: ModelConfig
    compute: Compute
    base: Callable[[], Base]
    examples: Examples
    steps: int
    rate: float
    seed: int
    programs: CompiledPrograms

    @property
    def length(self) -> int:
        """Tokens of a padded row."""
        return fitted_lengths(self.examples.lengths, 1)[-1]

    def flops(self, layers: int) -> int:
        """As `distilling_flops`.

        Args:
          layers: of the submodel.
        """
        return distilling_flops(self.config, layers, steps=self.steps, length=self.length)

    def __call__(self, layer_map: LayerMap, blocks: Block) -> Block:
        """The distilled layers of a stage, in float32.

        Args:
          layer_map: the stage's map, which fuses layers.
          blocks: its fused layers.
        """
        program, base = jit_step(self.config, self.compute), self.base()
        place = partial(jax.device_put, device=base.embed.sharding)
        # A copy, because the program overwrites it.
        blocks = place(jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), blocks))
        state, rows = place((optax.scale_by_adam().init(blocks), fused_rows(layer_map)))
        length = self.length
        for step, index in enumerate(self._batches()):
            tokens, _ = gather_batch(self.examples, index, length)
            inputs = np.float32(self.rate * (1 - step / self.steps)), tokens, real_tokens(self.examples, index, tokens)
            blocks, state, _ = self.programs.call("distil", program, base, blocks, state, rows, *place(inputs))
        return blocks

    def _batches(self) -> Iterator[np.ndarray]:
        """The numbers of every step's examples."""
        draw, order = np.random.default_rng(self.seed), np.array([], int)
        for _ in range(self.steps):
            while len(order) < ROWS:
                order = np.concatenate([order, draw.permutation(len(self.examples))])
            yield order[:ROWS]
            order = order[ROWS:]


def stage_distiller(parts: "Parts", layer_map: LayerMap) -> Distiller | None:
    """What distils the fused layers of a run's stage; None if it has none, or they are left as they are.

    Args:
      parts: the run's parts.
      layer_map: the stage's map.
    """
    if not parts.config.distil_steps or not is_distilled(layer_map):
        return None
    assert parts.probe is not None
    return Distiller(
        config=parts.model.config,
        compute=parts.training.compute,
        base=lambda: parts.submodels.on_one_device(parts.base),
        examples=parts.probe,
        steps=parts.config.distil_steps,
        rate=parts.config.distil_rate,
        seed=parts.config.seed,
        programs=parts.programs,
    )
