"""The adapters in a run's checkpoint: at full depth, and for the stage's submodel.

A checkpoint holds the server's state at full depth from the start of the stage, the stage's own state, and the stage's
LayerMap. The adapter at full depth is `transfer` of the three, and the submodel is `fuse` of the base (docs/algorithm.md).
If every client has its own model, the adapters are those of one client, from the bank. Nothing is trained and no data is
read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithm import Clients
from devft_jax.federated.bank import BankView, ClientBank
from devft_jax.federated.beginning import first_state
from devft_jax.federated.sampling import Purpose, run_key
from devft_jax.federated.warm_start import WarmStart
from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.lora import as_low_rank
from devft_jax.storage.run_folder import RunFolder
from devft_jax.training.restoring import restore_bank, stage_shapes
from devft_jax.training.stored_runs import StoredRun


@dataclass(frozen=True)
class SavedAdapters:
    """The adapters of one checkpoint; a single client's if models are personal.

    Attributes:
      full: the adapter at full depth, with what the current stage had learned; leaves [L, ...].
      submodel: the stage's own adapter; leaves [depth of the stage, ...].
      layer_map: the stage's map.
      stage: number of the stage, from 1.
      base: fingerprint of the run's base.
    """

    full: Adapter
    submodel: Adapter
    layer_map: LayerMap
    stage: int
    base: str


def read_saved(
    folder: RunFolder,
    round_index: int,
    run: StoredRun,
    architecture: ModelConfig,
    position: int | None,
    *,
    start: Callable[[], WarmStart | None],
) -> SavedAdapters:
    """The adapters of one checkpoint; what clients keep is read only if a model is made from it.

    Args:
      folder: the run's folder, held for reading.
      round_index: the round of the checkpoint.
      run: the run.
      architecture: of the base at full depth.
      position: index of the client whose model is read; None for the model of all clients.
      start: returns the adapter with which the run began; called only if models are personal.

    Raises:
      InputError: the checkpoint cannot be read, or belongs to another model.
    """
    algorithm, config = run.algorithm, run.config
    record = folder.checkpoints.read_record(round_index)
    key = run_key(config.seed, Purpose.INITIALISATION)
    # The number of clients matters only for what clients keep.
    clients = Clients(1 if algorithm.personal is None else len(run.client_names()))

    def init_server(clients: Clients) -> Any:
        return algorithm.init_server(key, architecture, clients)

    like = stage_shapes(algorithm, init_server, record, clients=clients.size, layers=architecture.layers)
    arrays = jax.tree.map(jnp.asarray, jax.device_get(folder.checkpoints.read_some_arrays(round_index, like)))
    full, server, layer_map = (arrays[name] for name in ("full", "server", "layer_map"))
    deep = algorithm.transfer(full, server, layer_map, config.transfer)
    if algorithm.personal is None:
        adapters = algorithm.view(deep), algorithm.view(server)
    else:
        began = start()
        bank = ClientBank(
            algorithm,
            lambda: first_state(algorithm, init_server(clients), began),
            algorithm.traits(clients),
            clients=clients.size,
            mode=config.transfer,
        )
        restore_bank(folder, round_index, bank, arrays, align=config.gauge_alignment)

        def adapter_of(server: Any, rows: BankView) -> Adapter:
            if position is None:
                return algorithm.global_model(server, rows.of_trained())
            assert algorithm.personal is not None
            return algorithm.personal(server, jax.tree.map(lambda leaf: leaf[0], rows.take(np.array([position]))))

        adapters = adapter_of(deep, bank.view(full=True)), adapter_of(server, bank.view(full=False))
    return SavedAdapters(
        full=as_low_rank(adapters[0]),
        submodel=_on_every_layer(as_low_rank(adapters[1]), layer_map.bare),
        layer_map=layer_map,
        stage=record.stage + 1,
        base=record.totals.base,
    )


def _on_every_layer(adapter: Adapter, bare: int) -> Adapter:
    """An adapter of the last layers, with zero factors added for the `bare` layers below, as other tools need it."""
    below = ((bare, 0), (0, 0), (0, 0))
    return adapter.replace(lora=jax.tree.map(lambda leaf: jnp.pad(leaf, below), adapter.lora))
