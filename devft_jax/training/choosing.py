"""Asks the growth for a stage: from the frozen layers, the adapter and the rounds so far to the stage's map.

The stage that begins is chosen in this way, and so is the next one when its gain is measured during a stage: from the state
that the run would have if the stage ended then, with the key and the measurements that it would use.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from devft_jax.developmental import LayerMap, StageShape, Transition, next_stage
from devft_jax.errors import RunError
from devft_jax.federated.sampling import Purpose, run_key
from devft_jax.models.base import Block
from devft_jax.reporting.units import counted
from devft_jax.storage.records import RoundRecord, RunTotals
from devft_jax.training.measured import measured_growth
from devft_jax.training.parts import Parts
from devft_jax.training.stages import check_composition
from devft_jax.typing import PyTree


@dataclass(frozen=True)
class ChosenStage:
    """A stage before its submodel is made.

    Attributes:
      transition: the growth's choice with its measurements.
      blocks: the layers from which the submodel is fused.
      layer_map: the map, as adapters pass through it.
    """

    transition: Transition
    blocks: Block
    layer_map: LayerMap


def choose_stage(
    parts: Parts, full: PyTree, totals: RunTotals, stage: int, history: Sequence[RoundRecord]
) -> ChosenStage | None:
    """Ask the growth for a stage; None if it has no such stage.

    Args:
      parts: the run's parts.
      full: the algorithm's state at full depth when the stage begins.
      totals: the run's totals, which keep what was measured of the untuned base's layers.
      stage: its number, from 0.
      history: the records of the rounds so far.

    Raises:
      RunError: the growth's map does not fit the model, or the algorithm cannot train it.
    """
    submodels, algorithm, growth = parts.submodels, parts.algorithm, measured_growth(parts, totals)
    blocks = submodels.layers_to_fuse(stage)
    adapter = algorithm.view(full)
    tree = (blocks, *submodels.to_host((adapter.lora, adapter.delta)))
    key = jax.random.fold_in(run_key(parts.config.seed, Purpose.GROWTH), stage)
    try:
        with jax.default_device(submodels.home):
            transition = next_stage(growth, stage, tree, history, key)
    except ValueError as error:
        raise RunError(f"stage {stage + 1} could not be built: {error}") from error
    if transition is None:
        return None
    _check_announced(parts, stage, transition.layer_map)
    check_composition(algorithm, [StageShape.of(transition.layer_map)])
    layer_map = dataclasses.replace(transition.layer_map, align=parts.config.gauge_alignment)
    return ChosenStage(transition, blocks, layer_map)


def _check_announced(parts: Parts, stage: int, layer_map: LayerMap) -> None:
    """Raise `RunError` for a map of another depth than the growth announced, for which the programs were compiled."""
    if parts.depths is not None and parts.depths[stage] != layer_map.num_groups:
        raise RunError(
            f"stage {stage + 1} could not be built: the growth's map has {counted(layer_map.num_groups, 'layer')}, but its "
            f"depths announce {parts.depths[stage]}; let both agree, or let depths return None."
        )
