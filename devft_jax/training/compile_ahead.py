"""Compiles the next stage's programs on a background thread while the current stage trains."""

import jax
import numpy as np

from devft_jax.models.sharding import whole
from devft_jax.runtime.devices import shapes_on
from devft_jax.training.parts import Parts
from devft_jax.training.stage import above
from devft_jax.training.state import State


def compile_stage_ahead(parts: Parts, state: State, stage: int) -> None:
    """Start to compile a stage's programs, if its shape is known before it begins.

    Args:
      parts: the run's parts.
      state: a state of any earlier stage.
      stage: number of the stage to compile, from 0.
    """
    config, algorithm, training = parts.config, parts.algorithm, parts.training
    layers = parts.model.config.layers
    planned = parts.growth.shapes(layers) or ()
    choice, platform = config.compile_ahead, parts.devices[0].platform
    if parts.classes is not None:
        # The programs of a round are those of its participants' classes.
        return
    wanted = choice == "on" or (choice == "auto" and platform != "cpu")
    if not wanted or stage >= min(len(planned), len(state.totals.stage_rounds)):
        return
    layer_map = planned[stage].some_map(layers)
    stored = layer_map.bare > 0 and config.prefix_cache != "off" and config.fleet is None
    stored = stored and not parts.processes.several
    if stored and config.prefix_cache == "auto":
        # Whether hidden states are stored is decided only when the stage begins.
        return
    base = parts.submodels.shapes(layer_map)
    server = jax.eval_shape(
        lambda full, base: algorithm.enter(algorithm.submodel(full, layer_map), above(base, layer_map)),
        state.full,
        whole(base),
    )
    row = state.bank.stage_row(layer_map)
    shape = parts.rounds.steps, parts.rounds.batch_size, training.passes.lengths[-1]
    batch = [jax.ShapeDtypeStruct(shape, np.int32), jax.ShapeDtypeStruct(shape, bool)]
    if stored:
        batch.append(jax.ShapeDtypeStruct((*shape, parts.model.config.width), training.compute.dtype))
    parts.cohort.prepare(base, server, row, tuple(batch), np.asarray(layer_map.train))
    parts.evaluator.prepare(base, server, row)
    rows = () if algorithm.personal is None else (shapes_on(None, row, parts.cohort.clients_per_step),)
    parts.programs.prepare("adapter_norms", parts.norms, shapes_on(None, server), *rows)
