"""What changes while a run goes on: the algorithm's state, and the record of what was spent and learned so far."""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from devft_jax.developmental import LayerMap, Transition
from devft_jax.federated.bank import ClientBank
from devft_jax.typing import PyTree


@dataclass
class State:
    """Everything that changes while a run goes on.

    Attributes:
      round: rounds finished, over all stages. stage: the one under way, from 0; -1 before the first.
      rounds_in_stage: finished in it. full: the algorithm's state at full depth, as of the stage's start.
      bank: what clients keep. server, layer_map: of the stage under way. record: JSON-ready totals and stage records.
      last_round: i32[N], the round (from 1) in which each client last took part; 0 for never.
    """

    full: PyTree
    layer_map: LayerMap
    bank: ClientBank
    last_round: np.ndarray
    server: PyTree = None
    round: int = 0
    stage: int = -1
    rounds_in_stage: int = 0
    record: dict[str, Any] = field(default_factory=dict)


def first_record(**fixed: Any) -> dict[str, Any]:
    """The record of a run before its first round: totals of zero, and what is `fixed` by then."""
    return {
        "seconds": dict.fromkeys(("train", "compile", "build", "evaluate"), 0.0),
        "compile_before": 0.0,
        "bytes_up": 0,
        "bytes_down": 0,
        "bytes_stage": 0,
        "bytes_missed": 0,
        "cumulative_bytes": [0],
        "train_flops": 0,
        "joules": {},
        "dropped": 0,
        "stages": [],
        "lengthened_after": 0,
        "resumed_after": [],
        **fixed,
    }


def stage_record(transition: Transition, layer_map: LayerMap, **fixed: Any) -> dict[str, Any]:
    """The record of a stage before its first round: how its layers came about, and what else is `fixed` by then."""
    assign = np.asarray(layer_map.assign)
    groups = [np.flatnonzero(assign == group) for group in range(layer_map.num_groups)]
    return {
        "layers": layer_map.num_groups,
        "depth": layer_map.depth,
        "trained": _trained_layers(layer_map),
        "rounds": 0,
        "seconds": 0.0,
        "bytes_up": 0,
        "bytes_down": 0,
        "assign": assign.tolist(),
        "group_sizes": [len(group) for group in groups],
        "groups": None if layer_map.runs_base else [group.tolist() for group in groups],
        "anchor_coefficients": None if layer_map.runs_base else _anchor_coefficients(layer_map),
        "transition_gap": float(transition.gap),
        "similarity": _rounded(transition.similarity),
        "spectrum": _rounded(transition.spectrum),
        **fixed,
    }


def add_round(state: State, row: dict[str, Any], compile_seconds: float) -> None:
    """Add a finished round's line of metrics to the totals and to those of its stage."""
    record, stage = state.record, state.record["stages"][-1]
    for name in ("bytes_up", "bytes_down"):
        record[name] += row[name]
        stage[name] += row[name]
    record["bytes_missed"] += row["bytes_missed"]
    record["train_flops"] += row["train_flops"]
    record["dropped"] += row["dropped"]
    record["seconds"]["train"] += row["seconds"]
    record["seconds"]["compile"] += compile_seconds
    stage["seconds"] += row["seconds"]
    stage["rounds"] += 1
    newcomers = np.count_nonzero(state.last_round[row["clients"]] <= state.round - state.rounds_in_stage)
    record["bytes_stage"] += int(newcomers) * stage["submodel_bytes"]
    state.last_round[row["clients"]] = state.round


def missed_bytes(state: State, positions: np.ndarray, sent: int) -> int:
    """Bytes of earlier messages that the participants of the round under way sat out and need.

    Args:
      positions: of the participants. sent: this round's part of such messages, which those who sit this one out will need.
    """
    totals = np.array(state.record["cumulative_bytes"])
    owed = totals[-1] - totals[state.last_round[positions]]
    state.record["cumulative_bytes"].append(int(totals[-1]) + sent)
    return int(owed.sum())


def _trained_layers(layer_map: LayerMap) -> list[int] | None:
    """The rows that learn, of the base itself the layers; None where all do."""
    if not layer_map.bare and np.asarray(layer_map.train).all():
        return None
    return (layer_map.bare + np.flatnonzero(layer_map.train)).tolist()


def _anchor_coefficients(layer_map: LayerMap) -> list[float | None]:
    """The coefficient of every group's first layer; None for a group that is computed for no layer of its own."""
    matrix, assign = np.asarray(layer_map.fuse), np.asarray(layer_map.assign)
    members = [np.flatnonzero(assign == group) for group in range(layer_map.num_groups)]
    return [float(row[layers[0]]) if len(layers) else None for row, layers in zip(matrix, members, strict=True)]


def _rounded(values: jax.Array | None) -> list[Any] | None:
    return None if values is None else np.round(np.asarray(values, float), 5).tolist()
