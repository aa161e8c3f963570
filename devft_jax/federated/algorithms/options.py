"""Options that every algorithm may read, and those that several algorithms share.

An algorithm with options of its own declares them in its own file, as a dataclass that extends these. Its record states
which of them it reads, `Algorithm.reads`.
"""

from dataclasses import dataclass

from devft_jax.federated.options import FederatedOptions
from devft_jax.models.lora import LoraOptions
from devft_jax.options import option


@dataclass(frozen=True, kw_only=True)
class MethodOptions(LoraOptions, FederatedOptions):
    """Options from which every algorithm is made: the adapters and the protocol."""


@dataclass(frozen=True, kw_only=True)
class ClientRankOptions(MethodOptions):
    """Ranks that differ between clients."""

    client_ranks: tuple[int, ...] | None = option(
        None, of="algorithm", at_least=1, at_most=2**16, remedy="give ranks of 1 or above, such as 32,16,8"
    )
    """Ranks assigned to the clients in turn, such as 32,16,8; by default all have `rank`."""
