"""Local-only training, a control: what the clients reach without each other.

Every client i starts from the common initialisation (a_0, b_0) and trains both factors on its own examples whenever it is
sampled, continuing from its previous state:

    (a_i, b_i) <- local training of (a_i, b_i) on the examples of client i.

The cohorts, the examples, their order and the learning rates are those of FedIT with the same seed. No message is sent: the
common initialisation follows from the seed. Each client keeps its own factors between rounds, while its optimiser is
rebuilt in every round, as in FedIT.

There is no global model. The evaluated models are the clients' own on the common held-out data, reported as the mean over
all clients; a client that has not been sampled yet has the initial adapter, which is the untuned base.

With a growth the clients' factors are mapped over layers like other LoRA factors, each separately, and the server, which
knows no client's factors, groups layers by the base and the common initialisation. A stage's fused base layers are then made
by the server and counted as for any growth.
"""

from devft_jax.developmental import LayerMap, fuse, inherit
from devft_jax.federated.adapters import adapter_of, aligned, initial_adapter, returned_adapter, stage_adapter
from devft_jax.federated.algorithm import Algorithm, Participant, empty
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.options import MethodOptions
from devft_jax.typing import PyTree


def local_only(config: MethodOptions) -> Algorithm:
    """Local-only training with the configured adapters; `message_dtype` has no effect, because there is no message.

    Server: the common initialisation, which never changes. Row: the client's factors, {projection: LoraFactors [G, ...]}.

    Args:
      config: the options of the run's methods.
    """

    def start(participant: Participant) -> tuple[PyTree, PyTree]:
        return participant.row, ()

    def finish(participant: Participant, train: PyTree) -> tuple[PyTree, PyTree]:
        return {}, train

    def transfer_row(full: PyTree, stage: PyTree, layer_map: LayerMap, mode: str) -> PyTree:
        return inherit(layer_map, stage, full, mode=mode)

    return Algorithm(
        **described("local-only"),
        init_server=lambda key, model, clients: initial_adapter(key, model, config),
        broadcast=empty,
        start=start,
        adapter=lambda train, frozen: adapter_of(train, config),
        finish=finish,
        contribution=empty,
        finalize=lambda server, sums: (server, {}),
        view=lambda server: server,
        submodel=stage_adapter,
        transfer=returned_adapter,
        init_row=lambda server, trait: server.lora,
        submodel_row=lambda row, layer_map: fuse(layer_map, aligned(row, layer_map)),
        transfer_row=transfer_row,
        personal=lambda server, row: server.replace(lora=row),
    )
