"""A run's `State` as one checkpoint of its folder, and back."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithm import Algorithm, Clients
from devft_jax.state import State
from devft_jax.storage import RunFolder, mapped_shapes

PyTree = Any


def save_state(folder: RunFolder, state: State) -> None:
    """Write everything."""
    record = {
        **state.record,
        "round": state.round,
        "stage": state.stage,
        "rounds_in_stage": state.rounds_in_stage,
        "groups": state.layer_map.num_groups,
        "bare": state.layer_map.bare,
    }
    arrays = {
        "full": state.full,
        "full_bank": state.full_bank,
        "server": state.server,
        "bank": state.bank,
        "layer_map": state.layer_map,
        "last_round": state.last_round,
    }
    folder.save_checkpoint(state.round, arrays, record)


def read_state(
    folder: RunFolder,
    record: dict[str, Any],
    algorithm: Algorithm,
    init_server: Callable[[Clients], PyTree],
    *,
    clients: int,
    layers: int,
) -> State:
    """The state of the checkpoint whose record this is, of so many clients and layers of the base."""
    # Shapes need no look at the data, and what clients keep of it is in the checkpoint.
    population = Clients(clients)
    full = jax.eval_shape(lambda: init_server(population))
    shaped = LayerMap.shapes(record["groups"], layers, record["bare"])
    server = jax.eval_shape(algorithm.submodel, full, shaped)
    full_bank = jax.eval_shape(lambda full: algorithm.init_bank(population, full), full)
    bank = mapped_shapes(algorithm.submodel_row, full_bank, shaped)
    shapes = {
        "full": full,
        "full_bank": full_bank,
        "server": server,
        "bank": bank,
        "layer_map": shaped,
        "last_round": jax.ShapeDtypeStruct((clients,), np.int32),
    }
    arrays = folder.read_arrays(record["round"], shapes)
    return State(
        full=arrays["full"],
        full_bank=jax.device_get(arrays["full_bank"]),
        server=arrays["server"],
        bank=jax.device_get(arrays["bank"]),
        layer_map=arrays["layer_map"],
        last_round=np.array(arrays["last_round"]),
        round=record["round"],
        stage=record["stage"],
        rounds_in_stage=record["rounds_in_stage"],
        record=record,
    )
