"""The package's own algorithms by name, and the options of all of them.

`local-only` and `central` are controls; the results of a federated algorithm should lie between them: what clients reach
without each other, and what could be reached if all data were in one place.
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
from devft_jax.federated.algorithms.fedmomentum import fedmomentum
from devft_jax.federated.algorithms.fedprox import FedProxOptions, fedprox
from devft_jax.federated.algorithms.fedrot_lora import FedRotLoraOptions, fedrot_lora
from devft_jax.federated.algorithms.fedsa_lora import fedsa_lora
from devft_jax.federated.algorithms.fedsvd import fedsvd
from devft_jax.federated.algorithms.ffa_lora import FFALoraOptions, ffa_lora
from devft_jax.federated.algorithms.flasc import FlascOptions, flasc
from devft_jax.federated.algorithms.flexlora import FlexLoraOptions, flexlora
from devft_jax.federated.algorithms.flora import flora
from devft_jax.federated.algorithms.hetlora import HetLoraOptions, hetlora
from devft_jax.federated.algorithms.local_only import local_only
from devft_jax.federated.algorithms.lora_fair import LoraFairOptions, lora_fair
from devft_jax.federated.algorithms.options import ClientRankOptions
from devft_jax.federated.algorithms.rest_of_world import RestOfWorldOptions, rest_of_world
from devft_jax.federated.algorithms.rolora import rolora
from devft_jax.federated.algorithms.scaffold import scaffold
from devft_jax.federated.algorithms.server_optimizers import ServerOptimizerOptions, fedadagrad, fedadam, fedavgm, fedyogi
from devft_jax.federated.channels.options import ChannelOptions

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
    FlexLoraOptions,
    LoraFairOptions,
    RestOfWorldOptions,
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
    FlexLoraOptions,
    LoraFairOptions,
    RestOfWorldOptions,
    ChannelOptions,
):
    """All options from which an algorithm and its channel are made."""


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
    "rolora": rolora,
    "flexlora": flexlora,
    "lora-fair": lora_fair,
    "fedsvd": fedsvd,
    "fedmomentum": fedmomentum,
    "rest-of-world": rest_of_world,
    "local-only": local_only,
    "central": central,
}
"""The package's own algorithms by name; each is a function of the run's method options, a `MethodConfig`."""
