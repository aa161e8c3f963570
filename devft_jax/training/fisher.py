"""The layers' Fisher information on public text, for growths whose clients draw layers by it."""

import numpy as np
from jax.sharding import Mesh

from devft_jax.config.run_config import RunConfig
from devft_jax.data import Examples, fitted_lengths
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.llama import Compute
from devft_jax.runtime.compiled import CompiledPrograms
from devft_jax.training.gradients import Slopes


def layer_fisher(
    model: ModelConfig,
    base: Base,
    compute: Compute,
    examples: Examples,
    config: RunConfig,
    mesh: Mesh,
    programs: CompiledPrograms,
) -> list[float]:
    """The trace of the empirical Fisher matrix of each layer's adapted weights, L numbers.

    The mean over examples of the squared norm of the gradient of an example's mean loss over its answer's tokens.

    Args:
      model: the architecture at full depth.
      base: the untuned base, on the devices of `mesh`.
      compute: how the model is executed.
      examples: public text.
      config: names the adapted projections.
      mesh: the devices.
      programs: keeps compiled programs.
    """
    # The longest example's length for all, so that there is one program.
    length, total = fitted_lengths(examples.lengths, 1), np.zeros(model.layers)
    for index in range(len(examples)):
        alone = examples.take(np.array([index]))
        slopes = Slopes(model, compute, alone, targets=config.targets, mesh=mesh, programs=programs, lengths=length, rows=1)
        for gradient in slopes(base, model.layers).gradient.values():
            total += (gradient.astype(float) ** 2).sum(axis=(1, 2))
    return (total / len(examples)).tolist()
