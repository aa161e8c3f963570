"""What changes during a run: the algorithm's state, and the totals of what was spent and learned so far."""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from devft_jax.developmental import LayerMap, Transition
from devft_jax.federated.bank import ClientBank
from devft_jax.models.base import Base
from devft_jax.storage.records import RoundRecord, RunTotals, StageRecord
from devft_jax.typing import PyTree


@dataclass
class State:
    """Everything that changes during a run.

    Attributes:
      full: the algorithm's state at full depth, from the beginning of the stage.
      layer_map: of the current stage.
      bank: what clients keep between rounds.
      last_round: i32[N], the round (from 1) in which each client last received the server's message; 0 for never.
      totals: of the run so far, with the record of every stage.
      base: the frozen part of the stage's model, on the devices; before the first stage the full base.
      server: the algorithm's state in the current stage.
      versions: earlier states of the stage from which clients are still at work, by the rounds done before them.
      round: rounds done, over all stages.
      stage: the current stage, from 0; -1 before the first.
      rounds_in_stage: rounds done in the current stage.
      class_maps: the growth's maps of all stages so far, if clients of different classes hold different layers; the
        server's state is then at full depth, and `layer_map` the identity.
      class_bases: the frozen layers of classes, by number, if they are not the model's own.
      compiled_ahead_in: the stage during which compiling ahead was last started.
    """

    full: PyTree
    layer_map: LayerMap
    bank: ClientBank
    last_round: np.ndarray
    totals: RunTotals
    base: Base
    server: PyTree = None
    versions: dict[int, PyTree] = field(default_factory=dict)
    round: int = 0
    stage: int = -1
    rounds_in_stage: int = 0
    class_maps: list[LayerMap] = field(default_factory=list)
    class_bases: dict[int, Base] = field(default_factory=dict)
    compiled_ahead_in: int = -1


def new_stage_record(
    transition: Transition, layer_map: LayerMap, *, planned_rounds: int, submodel_bytes: int, cached_layers: int
) -> StageRecord:
    """The record of a stage before its first round, with how its layers were chosen.

    Args:
      transition: the transition into the stage.
      layer_map: the stage's map.
      planned_rounds: rounds planned for the stage.
      submodel_bytes: bytes that a client with the base also needs.
      cached_layers: number of the lowest layers whose hidden states are stored.
    """
    assign = np.asarray(layer_map.assign)
    sizes = [int(np.count_nonzero(assign == group)) for group in range(layer_map.num_groups)]
    return StageRecord(
        layers=layer_map.num_groups,
        depth=layer_map.depth,
        trained=_trained_layers(layer_map),
        assign=assign.tolist(),
        group_sizes=sizes,
        anchor_coefficients=None if layer_map.runs_base else _anchor_coefficients(layer_map),
        transition_gap=float(transition.gap),
        similarity=_rounded(transition.similarity),
        spectrum=_rounded(transition.spectrum),
        planned_rounds=planned_rounds,
        submodel_bytes=submodel_bytes,
        cached_layers=cached_layers,
    )


def add_round(state: State, row: RoundRecord, compile_seconds: float) -> None:
    """Add a finished round to the run's totals and to those of its stage.

    Args:
      state: the state after the round.
      row: the round's record.
      compile_seconds: seconds spent waiting for compilation in the round.
    """
    totals, stage = state.totals, state.totals.stages[-1]
    for each in (totals, stage):
        each.bytes_up += row.bytes_up
        each.bytes_down += row.bytes_down
    totals.bytes_missed += row.bytes_missed
    totals.train_flops += row.train_flops
    totals.dropped += row.dropped
    totals.seconds.train += row.seconds
    totals.seconds.compile += compile_seconds
    stage.seconds += row.seconds
    stage.rounds += 1
    received: Any = row.clients
    if row.simulated is not None:
        # Clients that were lost have received the server's message, too.
        received = np.unique(np.array(row.simulated.selected, np.int64))
        if stage.simulated is not None:
            stage.simulated.add(row.simulated)
        if totals.fleet is not None:
            totals.fleet.seconds = row.simulated.clock
    newcomers = np.count_nonzero(state.last_round[received] <= state.round - state.rounds_in_stage)
    totals.bytes_stage += int(newcomers) * stage.submodel_bytes
    state.last_round[received] = state.round


def missed_bytes(state: State, positions: np.ndarray, sent: int) -> int:
    """Bytes of earlier messages that the participants of the current round missed and now need.

    Args:
      state: the state before the round is counted.
      positions: indices of the participants.
      sent: bytes of this round's message that absent clients will need later.
    """
    cumulative = np.array(state.totals.cumulative_bytes)
    owed = cumulative[-1] - cumulative[state.last_round[positions]]
    state.totals.cumulative_bytes.append(int(cumulative[-1]) + sent)
    return int(owed.sum())


def _trained_layers(layer_map: LayerMap) -> list[int] | None:
    """The rows that learn, as layers of the base; None if all rows learn."""
    if not layer_map.bare and np.asarray(layer_map.train).all():
        return None
    return (layer_map.bare + np.flatnonzero(layer_map.train)).tolist()


def _anchor_coefficients(layer_map: LayerMap) -> list[float | None]:
    """The coefficient of every group's first layer; None for a group that contains no layer itself."""
    matrix, assign = np.asarray(layer_map.fuse), np.asarray(layer_map.assign)
    members = [np.flatnonzero(assign == group) for group in range(layer_map.num_groups)]
    return [float(row[layers[0]]) if len(layers) else None for row, layers in zip(matrix, members, strict=True)]


def _rounded(values: jax.Array | None) -> list[Any] | None:
    return None if values is None else np.round(np.asarray(values, float), 5).tolist()
