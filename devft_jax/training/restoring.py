"""What the arrays of a checkpoint are, and how the bank of clients' rows is restored from one."""

import dataclasses
from collections.abc import Callable

import jax

from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithm import Algorithm, Clients
from devft_jax.federated.bank import ClientBank
from devft_jax.storage.records import CheckpointRecord
from devft_jax.storage.run_folder import RunFolder
from devft_jax.typing import PyTree


def stage_shapes(
    algorithm: Algorithm, init_server: Callable[[Clients], PyTree], record: CheckpointRecord, *, clients: int, layers: int
) -> PyTree:
    """Shapes and dtypes of the arrays in a checkpoint that have a layer axis.

    Args:
      algorithm: the run's algorithm.
      init_server: creates the algorithm's first state.
      record: the checkpoint's record.
      clients: N, the number of clients.
      layers: L, layers of the full model.
    """
    # Shapes do not depend on the data.
    full = jax.eval_shape(lambda: init_server(Clients(clients)))
    layer_map = LayerMap.shapes(record.groups, layers, record.bare)
    shapes = {"full": full, "server": jax.eval_shape(algorithm.submodel, full, layer_map), "layer_map": layer_map}
    if record.versions is not None:
        shapes["versions"] = [shapes["server"]] * len(record.versions)
    if record.class_maps is not None:
        shapes["class_maps"] = [LayerMap.shapes(groups, layers, bare) for groups, bare in record.class_maps]
    if record.maps is not None:
        shapes["maps"] = [LayerMap.shapes(groups, layers, bare) for groups, bare in record.maps]
    return shapes


def restore_bank(folder: RunFolder, round_index: int, bank: ClientBank, arrays: PyTree, *, align: bool) -> None:
    """Restore a bank without rows from a checkpoint.

    Args:
      folder: the run's folder.
      round_index: round of the checkpoint.
      bank: an empty bank; changed.
      arrays: the checkpoint's arrays.
      align: whether factors are aligned when layers are fused; the stored maps do not hold this.
    """
    if bank.empty:
        bank.enter(arrays["layer_map"])
        return
    with folder.checkpoints.restoring(round_index):
        bank.restore(
            folder.checkpoints.bank_paths(round_index), [dataclasses.replace(each, align=align) for each in arrays["maps"]]
        )
