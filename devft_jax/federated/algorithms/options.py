"""The options of single algorithms; each field says whose it is, and other algorithms do not look at it."""

import math
from dataclasses import dataclass

from devft_jax.errors import InputError
from devft_jax.federated.options import FederatedOptions
from devft_jax.models.lora import LoraOptions

SECOND_MOMENTS = ("momentum", "update")
MOMENTUM_FORMS = ("average", "sum")
FFA_INITIALISATIONS = ("uniform", "orthonormal")
DOMAIN_RULES = ("dofit", "mean")


@dataclass(frozen=True, kw_only=True)
class AlgorithmOptions:
    """Choices of single algorithms, which others ignore."""

    prox_mu: float = 0.01
    """fedprox: weight mu of (mu / 2) ||x - x_round||^2 in every client's loss."""
    server_learning_rate: float = 1e-3
    """fedadagrad, fedyogi, fedadam, flasc: the server's step size eta."""
    server_beta1: float = 0.9
    """fedavgm, fedyogi, fedadam, flasc: decay of the server's momentum."""
    server_beta2: float = 0.99
    """fedyogi, fedadam, flasc: decay of the server's second moment."""
    server_tau: float = 1e-3
    """fedadagrad, fedyogi, fedadam: added to the root of the second moment, which begins at its square."""
    second_moment: str = "momentum"
    """fedyogi, fedadam: what the second moment is of, momentum (OpenFedLLM) or the round's update (the paper)."""
    momentum_form: str = "average"
    """fedavgm: m <- beta m + (1 - beta) update (average, OpenFedLLM) or m <- beta m + update (sum, the paper)."""
    client_ranks: tuple[int, ...] | None = None
    """flora, hetlora: ranks that the clients have in turn, such as 32,16,8; by default all have `rank`."""
    rank_shrink: float = 0.99
    """hetlora: share gamma of its directions that a client keeps when it prunes, one direction at least going."""
    rank_penalty: float = 0.01
    """hetlora: weight lambda of the norm of the directions that would be pruned in every client's loss."""
    domains: int = 2
    """dofit: domains J into which clients are divided by their instructions."""
    domain_top: int = 15
    """dofit: how many of a domain's matrices, those of largest norm, it offers to the others, in a full-depth model."""
    domain_step: float = 1.0
    """dofit: norm c of the step that a shared matrix takes away from the domains' mean."""
    domain_rule: str = "dofit"
    """dofit: what happens to a shared matrix, dofit (the step above) or mean (it becomes the domains' mean: DoFIT-base)."""
    hyper_rank: int = 16
    """c2a: width r of the bottleneck adapters that the hypernetwork makes."""
    hyper_width: int = 32
    """c2a: inner width c of the hypernetwork's factors."""
    hyper_clusters: int = 10
    """c2a: clusters of instructions whose shares describe a client."""
    hyper_ungated: bool = False
    """c2a: leave out the gate that begins at zero and keeps the untuned base intact at the start."""
    density_down: float = 0.25
    """flasc: share of the entries that the server sends, those of largest magnitude."""
    density_up: float = 0.25
    """flasc: share of the entries of its update that a client sends."""
    ffa_initialisation: str = "uniform"
    """ffa-lora: the frozen a, drawn as for any other method (uniform) or with orthonormal columns (orthonormal)."""
    rotation: float = 0.5
    """fedrot-lora: how far a client rotates its factors towards the round's, from 0 (not at all) to 1."""


@dataclass(frozen=True, kw_only=True)
class MethodConfig(LoraOptions, FederatedOptions, AlgorithmOptions):
    """Everything that an algorithm is made from."""


def validate_algorithm(options: AlgorithmOptions) -> None:
    """Raise `InputError` for a value that the algorithm it belongs to could not work with."""
    for name, allowed in (
        ("second_moment", SECOND_MOMENTS),
        ("momentum_form", MOMENTUM_FORMS),
        ("ffa_initialisation", FFA_INITIALISATIONS),
        ("domain_rule", DOMAIN_RULES),
    ):
        if getattr(options, name) not in allowed:
            raise InputError(f"{name} '{getattr(options, name)}' is unknown; choose from {', '.join(allowed)}.")
    for name in ("prox_mu", "rank_penalty", "domain_step"):
        if getattr(options, name) < 0:
            raise InputError(f"{name} {getattr(options, name)} is negative; use 0 or more.")
    for name in ("server_learning_rate", "server_tau"):
        if not 0 < getattr(options, name) < math.inf:
            raise InputError(f"{name} {getattr(options, name)} is not positive; 1e-3 is usual.")
    for name in ("server_beta1", "server_beta2"):
        if not 0 <= getattr(options, name) < 1:
            raise InputError(f"{name} {getattr(options, name)} is outside [0, 1); 0.9 and 0.99 are usual.")
    for name in ("density_down", "density_up"):
        if not 0 < getattr(options, name) <= 1:
            raise InputError(f"{name} {getattr(options, name)} is outside (0, 1]; 0.25 sends a quarter of the entries.")
    if not 0 < options.rank_shrink <= 1:
        raise InputError(f"rank_shrink {options.rank_shrink} is outside (0, 1]; 0.99 is usual.")
    if not 0 <= options.rotation <= 1:
        raise InputError(f"rotation {options.rotation} is outside [0, 1]; 0.5 is usual.")
    for name in ("domains", "domain_top", "hyper_rank", "hyper_width", "hyper_clusters"):
        if getattr(options, name) < 1:
            raise InputError(f"{name} {getattr(options, name)} is not positive; use 1 or more.")
    if options.client_ranks is not None and min(options.client_ranks, default=0) < 1:
        raise InputError(f"client_ranks {options.client_ranks} must be one or more ranks of 1 or above, such as 32,16,8.")
