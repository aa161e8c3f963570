"""The options of algorithms: those that every algorithm may read, those that several share, and those of single ones.

The description of an algorithm states which of them it reads (`Description.reads`). JAX is not imported here, so that a
command line is read and explained without it.
"""

from dataclasses import dataclass

from devft_jax.federated.options import FederatedOptions
from devft_jax.models.options import LoraOptions
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


@dataclass(frozen=True, kw_only=True)
class FedProxOptions(MethodOptions):
    """FedProx's options."""

    prox_mu: float = option(0.01, of="algorithm", at_least=0)
    """Weight mu of (mu / 2) ||x - x_round||^2 in every client's loss."""


@dataclass(frozen=True, kw_only=True)
class ServerOptimizerOptions(MethodOptions):
    """The server's optimiser."""

    server_learning_rate: float = option(1e-3, of="algorithm", above=0, remedy="1e-3 is usual")
    """The server's step size eta."""
    server_beta1: float = option(0.9, of="algorithm", within="[0, 1)", remedy="0.9 is usual")
    """Decay of the server's momentum."""
    server_beta2: float = option(0.99, of="algorithm", within="[0, 1)", remedy="0.99 is usual")
    """Decay of the server's second moment."""
    server_tau: float = option(1e-3, of="algorithm", above=0, remedy="1e-3 is usual")
    """Added to the root of the second moment, which begins at the square of this value."""
    second_moment: str = option("momentum", of="algorithm", choices=("momentum", "update"))
    """The quantity whose second moment is used: momentum (OpenFedLLM) or the round's update (the paper)."""
    momentum_form: str = option("average", of="algorithm", choices=("average", "sum"))
    """m <- beta m + (1 - beta) update (average, OpenFedLLM) or m <- beta m + update (sum, the paper)."""


@dataclass(frozen=True, kw_only=True)
class HetLoraOptions(ClientRankOptions):
    """HETLoRA's options."""

    rank_shrink: float = option(0.99, of="algorithm", within="(0, 1]", remedy="0.99 is usual")
    """Share gamma of its directions that a client keeps when it prunes; at least one direction is removed."""
    rank_penalty: float = option(0.01, of="algorithm", at_least=0)
    """Weight lambda, in every client's loss, of the norm of the directions that would be pruned."""


@dataclass(frozen=True, kw_only=True)
class DoFITOptions(MethodOptions):
    """DoFIT's options."""

    domains: int = option(2, of="algorithm", at_least=1, at_most=10**5)
    """Number J of domains into which clients are divided by their instructions."""
    domain_top: int = option(15, of="algorithm", at_least=1, at_most=10**5)
    """How many of its matrices, those of largest norm, a domain offers to the others, in a full-depth model."""
    domain_step: float = option(1.0, of="algorithm", at_least=0, when={"domain_rule": ("dofit",)})
    """Norm c of the step that moves a shared matrix away from the domains' mean."""
    domain_rule: str = option("dofit", of="algorithm", choices=("dofit", "mean"))
    """Update of a shared matrix: dofit (the step above) or mean (it is replaced by the domains' mean: DoFIT-base)."""


@dataclass(frozen=True, kw_only=True)
class C2AOptions(MethodOptions):
    """C2A's options."""

    hyper_rank: int = option(16, of="algorithm", at_least=1, at_most=2**16)
    """Width r of the bottleneck adapters that the hypernetwork generates."""
    hyper_width: int = option(32, of="algorithm", at_least=1, at_most=2**20)
    """Inner width c of the hypernetwork's factors."""
    hyper_clusters: int = option(10, of="algorithm", at_least=1, at_most=10**5)
    """Number of clusters of instructions by whose shares a client is described."""
    hyper_ungated: bool = option(False, of="algorithm")
    """Omit the gate that begins at zero and keeps the untuned base unchanged at the beginning."""


@dataclass(frozen=True, kw_only=True)
class FlascOptions(ServerOptimizerOptions):
    """FLASC's options."""

    density_down: float = option(0.25, of="algorithm", within="(0, 1]", remedy="0.25 sends a quarter of the entries")
    """Share of the entries that the server sends, those of largest magnitude."""
    density_up: float = option(0.25, of="algorithm", within="(0, 1]", remedy="0.25 sends a quarter of the entries")
    """Share of the entries of its update that a client sends."""


@dataclass(frozen=True, kw_only=True)
class FFALoraOptions(MethodOptions):
    """FFA-LoRA's options."""

    ffa_initialisation: str = option("uniform", of="algorithm", choices=("uniform", "orthonormal"))
    """The frozen a, drawn as for any other method (uniform) or with orthonormal columns (orthonormal)."""


@dataclass(frozen=True, kw_only=True)
class FedRotLoraOptions(MethodOptions):
    """FedRot-LoRA's options."""

    rotation: float = option(0.5, of="algorithm", within="[0, 1]", remedy="0.5 is usual")
    """How far a client rotates its factors towards the round's, from 0 (not at all) to 1 (fully)."""


@dataclass(frozen=True, kw_only=True)
class FlexLoraOptions(ClientRankOptions):
    """FlexLoRA's options."""

    svd_split: str = option("orthonormal", of="algorithm", choices=("orthonormal", "balanced"))
    """Where the singular values go: all into b, beside an orthonormal a (orthonormal, as published), or their square roots
    into both factors (balanced)."""


@dataclass(frozen=True, kw_only=True)
class LoraFairOptions(MethodOptions):
    """LoRA-FAIR's options."""

    fair_penalty: float = option(0.01, of="algorithm", above=0, remedy="0.01 is usual")
    """Weight lambda of ||d||^2 in the choice of the correction d of b; a large one gives FedIT."""


@dataclass(frozen=True, kw_only=True)
class OwnShareOptions(MethodOptions):
    """The options of methods in which a client's model has an adapter of its own beside a common one."""

    own_share: float = option(0.5, of="algorithm", within="(0, 1]", remedy="0.5 is usual")
    """Weight of a client's own adapter in its model; the mean of the others' or the shared one has the rest."""
