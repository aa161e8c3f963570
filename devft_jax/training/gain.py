"""What a stage and the next one promise, measured on public text while the stage trains (`--stage-end gain`).

    a  = cos(G, P(g))     the alignment (`devft_jax.training.alignment`) of the present stage
    a' = cos(G, P'(g'))   that of the next stage, with the map that the growth would give it if the stage ended now

G is the full model's gradient with the adapter as if the stage ended now, g the gradient of the stage's submodel with the
adapter as the server has it, g' that of the next submodel with the adapter mapped to it; all are gradients with respect to
the adapted weights, at the frozen weights plus what the adapter adds to them, and P, P' transfer them as the growth
transfers what is learned. The costs c, c' are those of one client's round (`gain_cost`): the bytes of its messages both
ways, or the operations of its training on examples of the data's mean length. The rule is in `devft_jax.training.stages`.

What is sent once per stage is not part of the cost, and stored outputs of layers (`prefix_cache`) save none: how a run is
executed must not decide what it computes. The map of a stage whose layers are the model's own needs no gradient but G if the
layers below it add nothing: its rows of G are its gradient. The server's operations and seconds are recorded.
"""

from collections.abc import Callable, Sequence

import numpy as np

from devft_jax.developmental import LayerMap, StageShape
from devft_jax.models.base import Base
from devft_jax.models.lora import weight_changes
from devft_jax.reporting.progress import readable_bytes
from devft_jax.reporting.units import FLOPS, readable
from devft_jax.storage.records import RoundRecord
from devft_jax.storage.result_records import GainRecord
from devft_jax.training.alignment import alignment
from devft_jax.training.choosing import choose_stage
from devft_jax.training.distilling import stage_distiller
from devft_jax.training.evaluate import transferred
from devft_jax.training.needs import demand_of
from devft_jax.training.parts import Parts
from devft_jax.training.stages import pays
from devft_jax.training.state import State
from devft_jax.typing import PyTree


def measure_gain(parts: Parts, state: State, history: Sequence[RoundRecord]) -> GainRecord | None:
    """Measure what the stage and the next one promise, and record it; None if the growth has no next stage.

    Args:
      parts: the run's parts.
      state: the state after a round of a stage; its stage's record and its seconds are changed.
      history: the records of the rounds so far.

    Raises:
      RunError: as in `devft_jax.training.choosing.choose_stage`.
    """
    totals, present = state.totals, state.layer_map
    doing = parts.progress.doing(f"measuring what stages {state.stage + 1} and {state.stage + 2} promise")
    with doing, parts.programs.timed() as elapsed:
        full = transferred(parts, state)
        chosen = choose_stage(parts, full, totals, state.stage + 1, history)
        if chosen is None:
            return None
        layer_map, distiller = chosen.layer_map, stage_distiller(parts, chosen.layer_map)
        promises = _Promises(parts, full)
        here = promises.alignment(present, lambda: state.base, state.server)
        there = promises.alignment(
            layer_map,
            lambda: parts.submodels.fused(layer_map, chosen.blocks, distil=distiller),
            parts.algorithm.submodel(full, layer_map),
        )
    totals.seconds.compile += elapsed.compiling
    totals.seconds.build += elapsed.running
    cost, next_cost = (round_cost(parts, each) for each in (present, layer_map))
    record = GainRecord(
        round=state.round,
        alignment=here if np.isfinite(here) else None,
        next_alignment=there if np.isfinite(there) else None,
        next_layers=layer_map.num_groups,
        cost=cost,
        next_cost=next_cost,
        ended=pays(there, next_cost, than=(here, cost)),
        server_flops=promises.flops + (0 if distiller is None else distiller.flops(layer_map.num_groups)),
        seconds=elapsed.running,
    )
    stage = totals.stages[-1]
    stage.gains = [*(stage.gains or ()), record]
    parts.progress.say(f"  {in_words(record, state.stage, parts.config.gain_cost)}")
    return record


def round_cost(parts: Parts, layer_map: LayerMap) -> float:
    """What one client's round of a stage costs: bytes of its messages both ways, or operations, see the module.

    Args:
      parts: the run's parts.
      layer_map: the stage's map.
    """
    demand = demand_of(parts.config, parts.training, StageShape.of(layer_map))
    if parts.config.gain_cost == "bytes":
        return float(demand.up + demand.down)
    length = np.rint(parts.data.train.lengths.mean()).astype(int)
    return parts.rounds.steps * parts.rounds.batch_size * float(demand.example_flops(length[None])[0])


def in_words(record: GainRecord, stage: int, cost: str) -> str:
    """A measurement as a line of the progress output.

    Args:
      record: the measurement.
      stage: the stage in which it was made, from 0.
      cost: the unit of its costs, as `gain_cost`.
    """

    def shown(alignment: float | None, amount: float) -> str:
        figure = "not finite" if alignment is None else f"{alignment:.3f}"
        return f"alignment {figure} for {readable_bytes(amount) if cost == 'bytes' else readable(amount, FLOPS)} a round"

    ratio = "" if record.ratio is None else f", {record.ratio:.2f} times as much per {'byte' if cost == 'bytes' else 'FLOP'}"
    return (
        f"stage {stage + 1}: {shown(record.alignment, record.cost)}; stage {stage + 2}: "
        f"{shown(record.next_alignment, record.next_cost)}{ratio}; the server's measurement took "
        f"{readable(record.server_flops, FLOPS)}"
    )


class _Promises:
    """Measures alignments with the full model.

    Args:
      parts: the run's parts.
      full: the algorithm's state at full depth, as if the stage ended now.

    Attributes:
      flops: the server's operations so far.
    """

    def __init__(self, parts: Parts, full: PyTree):
        assert parts.slopes is not None
        self._parts, self._slopes = parts, parts.slopes
        layers = parts.model.config.layers
        self._added = weight_changes(parts.algorithm.view(full))
        self._gradient = self._slopes(parts.base, layers, self._added).gradient
        self.flops = self._slopes.flops(layers, layers)

    def alignment(self, layer_map: LayerMap, base: Callable[[], Base], server: PyTree) -> float:
        """The alignment of a submodel with the full model.

        Args:
          layer_map: its map.
          base: returns its frozen part, on the devices.
          server: the algorithm's state of its stage.
        """
        bare, rows = layer_map.bare, layer_map.num_groups
        if layer_map.runs_base and not any(leaf[:bare].any() for leaf in self._added.values()):
            gradient = {name: leaf[bare:] for name, leaf in self._gradient.items()}
        else:
            added = weight_changes(self._parts.algorithm.view(server))
            gradient = self._slopes(base(), rows, added).gradient
            self.flops += self._slopes.flops(rows, layer_map.depth)
        return alignment(layer_map, gradient, self._gradient, mode=self._parts.config.transfer)
