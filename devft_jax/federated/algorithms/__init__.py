"""The registry: what the command line's `--algorithm` may name, and the options of them all.

`local-only` and `central` are controls, between which a federated algorithm should end: what clients reach without each
other, and what could be reached if their data lay in one place.
"""

from collections.abc import Callable
from dataclasses import dataclass

from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.algorithms.c2a import C2AOptions, c2a
from devft_jax.federated.algorithms.central import central
from devft_jax.federated.algorithms.dofit import DoFITOptions, dofit
from devft_jax.federated.algorithms.federa import federa
from devft_jax.federated.algorithms.fedex_lora import fedex_lora
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.algorithms.fedprox import FedProxOptions, fedprox
from devft_jax.federated.algorithms.fedrot_lora import FedRotLoraOptions, fedrot_lora
from devft_jax.federated.algorithms.fedsa_lora import fedsa_lora
from devft_jax.federated.algorithms.ffa_lora import FFALoraOptions, ffa_lora
from devft_jax.federated.algorithms.flasc import FlascOptions, flasc
from devft_jax.federated.algorithms.flora import flora
from devft_jax.federated.algorithms.hetlora import HetLoraOptions, hetlora
from devft_jax.federated.algorithms.local_only import local_only
from devft_jax.federated.algorithms.options import ClientRankOptions
from devft_jax.federated.algorithms.scaffold import scaffold
from devft_jax.federated.algorithms.server_optimizers import ServerOptimizerOptions, fedadagrad, fedadam, fedavgm, fedyogi

OPTIONS = (
    FedProxOptions,
    ServerOptimizerOptions,
    ClientRankOptions,
    HetLoraOptions,
    DoFITOptions,
    C2AOptions,
    FlascOptions,
    FFALoraOptions,
    FedRotLoraOptions,
)
"""The dataclasses that declare options of single algorithms."""


@dataclass(frozen=True, kw_only=True)
class MethodConfig(
    FedProxOptions,
    FlascOptions,
    HetLoraOptions,
    DoFITOptions,
    C2AOptions,
    FFALoraOptions,
    FedRotLoraOptions,
):
    """Everything that an algorithm is made from."""


ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "fedit": fedit,
    "flora": flora,
    "fedsa-lora": fedsa_lora,
    "dofit": dofit,
    "c2a": c2a,
    "ffa-lora": ffa_lora,
    "hetlora": hetlora,
    "federa": federa,
    "flasc": flasc,
    "fedprox": fedprox,
    "scaffold": scaffold,
    "fedavgm": fedavgm,
    "fedadagrad": fedadagrad,
    "fedyogi": fedyogi,
    "fedadam": fedadam,
    "fedex-lora": fedex_lora,
    "fedrot-lora": fedrot_lora,
    "local-only": local_only,
    "central": central,
}
"""Every algorithm that can be named; each takes the run's options of its methods, a `MethodConfig`."""
