"""Checks of a run's model and data before anything is compiled."""

from devft_jax.config.methods import algorithm_of
from devft_jax.data import FederatedData
from devft_jax.errors import InputError
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.lora import check_rank
from devft_jax.reporting import Progress


def check_ranks(config: MethodConfig, model: ModelConfig) -> None:
    """Raise `InputError` for ranks that are too large for the model's weights."""
    algorithm = algorithm_of(config)
    if "hyper_rank" in algorithm.reads and config.hyper_rank > model.width:
        raise InputError(
            f"hyper_rank {config.hyper_rank} exceeds the model's width {model.width}; it is the width of a bottleneck, use "
            f"{model.width} or less."
        )
    if "rank" not in algorithm.ignores:
        check_rank(model, config.targets, config.rank)
    if "client_ranks" in algorithm.reads and config.client_ranks is not None:
        check_rank(model, config.targets, max(config.client_ranks), "client_ranks")


def check_cohort(data: FederatedData, wanted: int) -> None:
    """Raise `InputError` unless there are `wanted` clients and each has an example."""
    clients = len(data.clients)
    if clients == 0:
        raise InputError("the data has no clients; give at least one client with an example.")
    if wanted > clients:
        raise InputError(f"clients_per_round {wanted} exceeds the {clients} clients of the data; use {clients} or fewer.")
    for client in data.clients:
        if len(client.indices) == 0:
            raise InputError(f"the client '{client.name}' has no examples; leave it out.")


def check_held_out(data: FederatedData, stop_after: int | None) -> None:
    """Raise `InputError` if the run may end by its held-out loss but no data is held out."""
    if stop_after is not None and data.test is None:
        raise InputError(
            f"stop_after {stop_after} ends a run by its held-out loss, but no data is held out; give test_data or "
            "test_fraction."
        )


def check_tokens(data: FederatedData, model: ModelConfig, max_length: int, progress: Progress) -> None:
    """Raise `InputError` if the data does not fit the model: an id outside the vocabulary would silently be read as
    another."""
    for name, examples in (("training", data.train), ("held-out", data.test)):
        if examples is None:
            continue
        if int(examples.tokens.max()) >= model.vocabulary:
            raise InputError(
                f"the {name} data has token {int(examples.tokens.max())}, but the model's vocabulary ends at "
                f"{model.vocabulary - 1}; use the model's own tokenizer."
            )
        longest = int(examples.lengths.max())
        if longest > max_length:
            raise InputError(f"the {name} data has an example of {longest} tokens; raise max_length {max_length} to it.")
        if longest > model.max_length:
            progress.warn(
                f"the {name} data has an example of {longest} tokens, but the model was made for {model.max_length}; "
                "lower max_length to stay inside."
            )
