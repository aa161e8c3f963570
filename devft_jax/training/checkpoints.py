"""A run's `State` as one checkpoint of its folder, and back.

Arrays and record are one checkpoint; what clients keep is a file beside it that holds the rows that were ever written.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithm import Algorithm, Clients
from devft_jax.federated.bank import ClientBank
from devft_jax.storage import RunFolder
from devft_jax.storage.records import CheckpointRecord
from devft_jax.training.state import State
from devft_jax.typing import PyTree


def save_state(folder: RunFolder, state: State) -> None:
    """Write everything."""
    record = CheckpointRecord(
        totals=state.totals,
        round=state.round,
        stage=state.stage,
        rounds_in_stage=state.rounds_in_stage,
        groups=state.layer_map.num_groups,
        bare=state.layer_map.bare,
    )
    arrays = {
        "full": state.full,
        "server": state.server,
        "layer_map": state.layer_map,
        "last_round": state.last_round,
    }
    if not state.bank.empty:
        # Rows go through the stages that they have sat out when they are next used.
        arrays["maps"] = state.bank.maps
        record.maps = [[layer_map.num_groups, layer_map.bare] for layer_map in state.bank.maps]
    folder.checkpoints.save(state.round, arrays, record, bank=None if state.bank.empty else state.bank.save)


def stage_shapes(
    algorithm: Algorithm, init_server: Callable[[Clients], PyTree], record: CheckpointRecord, *, clients: int, layers: int
) -> PyTree:
    """Shapes and dtypes of the arrays of the checkpoint whose record this is, that belong to layers."""
    # Shapes need no look at the data.
    full = jax.eval_shape(lambda: init_server(Clients(clients)))
    layer_map = LayerMap.shapes(record.groups, layers, record.bare)
    shapes = {"full": full, "server": jax.eval_shape(algorithm.submodel, full, layer_map), "layer_map": layer_map}
    if record.maps is not None:
        shapes["maps"] = [LayerMap.shapes(groups, layers, bare) for groups, bare in record.maps]
    return shapes


def restore_bank(folder: RunFolder, round_index: int, bank: ClientBank, arrays: PyTree, *, align: bool) -> None:
    """Bring the bank of no rows to a checkpoint, of these arrays; `align` is no part of the maps that they hold."""
    if bank.empty:
        bank.enter(arrays["layer_map"])
        return
    with folder.checkpoints.restoring(round_index):
        bank.restore(
            folder.checkpoints.bank_path(round_index), [dataclasses.replace(each, align=align) for each in arrays["maps"]]
        )


def read_state(
    folder: RunFolder,
    record: CheckpointRecord,
    algorithm: Algorithm,
    init_server: Callable[[Clients], PyTree],
    bank: ClientBank,
    *,
    clients: int,
    layers: int,
    align: bool,
) -> State:
    """The state of the checkpoint whose record this is, of so many clients and layers of the base.

    Args:
      bank: in which no client has a row yet. align: whether factors are aligned where layers are fused.
    """
    shapes = stage_shapes(algorithm, init_server, record, clients=clients, layers=layers)
    arrays = folder.checkpoints.read_arrays(
        record.round, {**shapes, "last_round": jax.ShapeDtypeStruct((clients,), np.int32)}
    )
    restore_bank(folder, record.round, bank, arrays, align=align)
    return State(
        full=arrays["full"],
        bank=bank,
        server=arrays["server"],
        layer_map=dataclasses.replace(arrays["layer_map"], align=align),
        last_round=np.array(arrays["last_round"]),
        round=record.round,
        stage=record.stage,
        rounds_in_stage=record.rounds_in_stage,
        totals=record.totals,
    )
