"""The package's own algorithms with what they send, keep and read, and the options of all of them.

The modules are imported only when an algorithm is made, so that all of this can be read without JAX.

`local-only` and `central` are controls; the results of a federated algorithm should lie between them: what clients reach
without each other, and what could be reached if all data were in one place.
"""

import dataclasses
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devft_jax.federated.algorithms.options import (
    C2AOptions,
    ClientRankOptions,
    DoFITOptions,
    FedProxOptions,
    FedRotLoraOptions,
    FFALoraOptions,
    FlascOptions,
    FlexLoraOptions,
    HetLoraOptions,
    LoraFairOptions,
    OwnShareOptions,
    ServerOptimizerOptions,
)
from devft_jax.federated.channels.options import ChannelOptions
from devft_jax.federated.description import Description

if TYPE_CHECKING:
    from devft_jax.federated.algorithm import Algorithm

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
    OwnShareOptions,
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
    OwnShareOptions,
    ChannelOptions,
):
    """All options from which an algorithm and its channel are made."""


@dataclass(frozen=True, kw_only=True)
class OwnAlgorithm(Description):
    """An algorithm of the package: its description, and the function that makes it.

    Attributes:
      module: name of its module, whose docstring has its mathematics.
      function: name of the module's function of a `MethodConfig` that returns the `Algorithm`.
    """

    module: str
    function: str

    def __call__(self, config: Any) -> "Algorithm":
        """The algorithm; imports its module.

        Args:
          config: the options of the run's methods, a `MethodConfig`.
        """
        made: Algorithm = getattr(importlib.import_module(self.module), self.function)(config)
        return made


def own(home: str, **description: Any) -> OwnAlgorithm:
    """An algorithm of the package.

    Args:
      home: module:function.
      description: the attributes of `Description`.
    """
    module, _, function = home.partition(":")
    return OwnAlgorithm(module=module, function=function, **description)


def described(name: str) -> dict[str, Any]:
    """The description of an algorithm of the package, as arguments of its `Algorithm`.

    Args:
      name: its name.
    """
    return {field.name: getattr(ALGORITHMS[name], field.name) for field in dataclasses.fields(Description)}


_OWN = (
    own(
        "devft_jax.federated.algorithms.fedit:fedit",
        name="fedit",
        reference="Zhang et al., Towards Building the Federated GPT, ICASSP 2024",
        message="a and b of every adapted layer, both ways",
        state="none",
        averages=True,
        by_layer=True,
    ),
    own(
        "devft_jax.federated.algorithms.flora:flora",
        name="flora",
        reference="Wang et al., FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank "
        "Adaptations, NeurIPS 2024",
        message="up a and b of every adapted layer; down those of all participants, stacked",
        state="server: a dense correction of every adapted weight; clients: the same, and their rank where ranks differ",
        reads=("client_ranks",),
    ),
    own(
        "devft_jax.federated.algorithms.fedsa_lora:fedsa_lora",
        name="fedsa-lora",
        reference="Guo et al., Selective Aggregation for Low-Rank Adaptation in Federated Learning, ICLR 2025",
        message="a of every adapted layer, both ways",
        state="clients: their own b",
        averages=True,
    ),
    own(
        "devft_jax.federated.algorithms.dofit:dofit",
        name="dofit",
        reference="Xu et al., DoFIT: Domain-aware Federated Instruction Tuning with Alleviated Catastrophic Forgetting, "
        "NeurIPS 2024",
        message="a and b of every adapted layer, both ways",
        state="server: an adapter for each domain; clients: their domain",
        reads=("domains", "domain_top", "domain_step", "domain_rule"),
    ),
    own(
        "devft_jax.federated.algorithms.c2a:c2a",
        name="c2a",
        reference="Kim et al., Client-Customized Adaptation for Parameter-Efficient Federated Learning, Findings of ACL "
        "2023",
        message="a hypernetwork that generates adapters, both ways",
        state="clients: shares of their examples in clusters of instructions",
        reads=("hyper_rank", "hyper_width", "hyper_clusters", "hyper_ungated"),
        ignores=("rank", "alpha", "rslora", "initialization", "dropout", "targets", "lora_plus_ratio"),
        because="generates adapters by a hypernetwork, whose size hyper_rank and hyper_width set",
        averages=True,
    ),
    own(
        "devft_jax.federated.algorithms.ffa_lora:ffa_lora",
        name="ffa-lora",
        reference="Sun et al., Improving LoRA in Privacy-preserving Federated Learning, ICLR 2024",
        message="b of every adapted layer, both ways",
        state="none",
        reads=("ffa_initialisation",),
        ignores=("lora_plus_ratio",),
        because="trains b alone",
        averages=True,
    ),
    own(
        "devft_jax.federated.algorithms.hetlora:hetlora",
        name="hetlora",
        reference="Cho et al., Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models, EMNLP 2024",
        message="a and b of every adapted layer up to the client's rank, and that rank, both ways",
        state="clients: their rank",
        reads=("client_ranks", "rank_shrink", "rank_penalty"),
    ),
    own(
        "devft_jax.federated.algorithms.federa:federa",
        name="federa",
        reference="Yan et al., FeDeRA: Efficient Fine-tuning of Language Models in Federated Learning Leveraging Weight "
        "Decomposition, arXiv:2404.18848, 2024",
        message="a and b of every adapted layer as changes since the stage's beginning, both ways",
        state="server and clients: a dense correction of every adapted weight",
        averages=True,
    ),
    own(
        "devft_jax.federated.algorithms.flasc:flasc",
        name="flasc",
        reference="Kuo et al., Federated LoRA with Sparse Communication, arXiv:2406.05233, 2024",
        message="the largest entries of a and b down and of their update up, with their positions",
        state="server: AdamW's moments of the adapter's shape",
        reads=("server_learning_rate", "server_beta1", "server_beta2", "density_down", "density_up"),
    ),
    own(
        "devft_jax.federated.algorithms.fedprox:fedprox",
        name="fedprox",
        reference="Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020",
        message="a and b of every adapted layer, both ways",
        state="none",
        reads=("prox_mu",),
        averages=True,
        by_layer=True,
    ),
    own(
        "devft_jax.federated.algorithms.scaffold:scaffold",
        name="scaffold",
        reference="Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020",
        message="a, b and the server's control down; a, b and the change of the client's control up",
        state="server: a control of the adapter's shape; clients: one each",
    ),
    own(
        "devft_jax.federated.algorithms.server_optimizers:fedavgm",
        name="fedavgm",
        reference="Hsu et al., Measuring the Effects of Non-Identical Data Distribution for Federated Visual "
        "Classification, arXiv:1909.06335, 2019",
        message="a and b of every adapted layer, both ways",
        state="server: momentum of the adapter's shape",
        reads=("server_beta1", "momentum_form"),
        averages=True,
        by_layer=True,
    ),
    own(
        "devft_jax.federated.algorithms.server_optimizers:fedadagrad",
        name="fedadagrad",
        reference="Reddi et al., Adaptive Federated Optimization, ICLR 2021",
        message="a and b of every adapted layer, both ways",
        state="server: sums of squares of the adapter's shape",
        reads=("server_learning_rate", "server_tau"),
        averages=True,
        by_layer=True,
    ),
    own(
        "devft_jax.federated.algorithms.server_optimizers:fedyogi",
        name="fedyogi",
        reference="Reddi et al., Adaptive Federated Optimization, ICLR 2021",
        message="a and b of every adapted layer, both ways",
        state="server: first and second moments of the adapter's shape",
        reads=("server_learning_rate", "server_beta1", "server_beta2", "server_tau", "second_moment"),
        averages=True,
        by_layer=True,
    ),
    own(
        "devft_jax.federated.algorithms.server_optimizers:fedadam",
        name="fedadam",
        reference="Reddi et al., Adaptive Federated Optimization, ICLR 2021",
        message="a and b of every adapted layer, both ways",
        state="server: first and second moments of the adapter's shape",
        reads=("server_learning_rate", "server_beta1", "server_beta2", "server_tau", "second_moment"),
        averages=True,
        by_layer=True,
    ),
    own(
        "devft_jax.federated.algorithms.fedex_lora:fedex_lora",
        name="fedex-lora",
        reference="Singhal et al., FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Large Language "
        "Models, ACL 2025",
        message="a and b of every adapted layer, both ways; down also the aggregation's residual",
        state="server and clients: a dense correction of every adapted weight",
    ),
    own(
        "devft_jax.federated.algorithms.fedrot_lora:fedrot_lora",
        name="fedrot-lora",
        reference="Zhang et al., FedRot-LoRA: Mitigating Rotational Misalignment in Federated LoRA, ICML 2026",
        message="a and b of every adapted layer, both ways",
        state="server: the number of rounds in the stage",
        reads=("rotation",),
        averages=True,
    ),
    own(
        "devft_jax.federated.algorithms.rolora:rolora",
        name="rolora",
        reference="Chen et al., Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA, NeurIPS 2025",
        message="up b or a of every adapted layer, in turn; down the one that has changed, or both after a missed round",
        state="server: the number of rounds in the stage; clients: the last round in which they took part",
    ),
    own(
        "devft_jax.federated.algorithms.flexlora:flexlora",
        name="flexlora",
        reference="Bai et al., Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client "
        "Resources, NeurIPS 2024",
        message="a and b of every adapted layer, both ways; up to the client's rank, and that rank, where ranks differ",
        state="clients: their rank where ranks differ",
        reads=("client_ranks", "svd_split"),
    ),
    own(
        "devft_jax.federated.algorithms.lora_fair:lora_fair",
        name="lora-fair",
        reference="Bian et al., LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization Refinement, ICCV "
        "2025",
        message="a and b of every adapted layer, both ways",
        state="none",
        reads=("fair_penalty",),
    ),
    own(
        "devft_jax.federated.algorithms.fedsvd:fedsvd",
        name="fedsvd",
        reference="Lee et al., FedSVD: Adaptive Orthogonalization for Private Federated Learning with LoRA, NeurIPS 2025",
        message="a and b of every adapted layer down, b up",
        state="none",
        ignores=("lora_plus_ratio",),
        because="trains b alone",
    ),
    own(
        "devft_jax.federated.algorithms.fedmomentum:fedmomentum",
        name="fedmomentum",
        reference="Yan et al., FedMomentum: Preserving LoRA Training Momentum in Federated Fine-Tuning, arXiv:2603.08014, "
        "2026",
        message="a and b of every adapted layer, both ways; down also what they cannot represent of the aggregate",
        state="server and clients: a dense correction of every adapted weight",
    ),
    own(
        "devft_jax.federated.algorithms.rest_of_world:rest_of_world",
        name="rest-of-world",
        reference="after Bian et al., FedALT: Federated Fine-Tuning through Adaptive Local Training with Rest-of-World "
        "LoRA, AAAI 2026, without its mixer",
        message="a and b of every adapted layer: up the client's own, down the mean over clients, and their number",
        state="server: the sum over clients of a and b; clients: their own a and b",
        reads=("own_share",),
        ignores=("weighting",),
        because="takes the plain mean over clients",
    ),
    own(
        "devft_jax.federated.algorithms.dual_adapters:dual_adapters",
        name="dual-adapters",
        reference="after Yang et al., Dual-Personalizing Adapter for Federated Foundation Models, NeurIPS 2024, without its "
        "weighting of single instances",
        message="a and b of the shared adapter of every adapted layer, both ways",
        state="clients: their own a and b",
        reads=("own_share",),
        averages=True,
    ),
    own(
        "devft_jax.federated.algorithms.local_only:local_only",
        name="local-only",
        reference="control: every client alone, evaluated by the mean over clients",
        message="nothing",
        state="clients: their own a and b",
        ignores=("weighting", "message_dtype", "channel"),
        because="sends no message",
    ),
    own(
        "devft_jax.federated.algorithms.central:central",
        name="central",
        reference="control: all examples in one place, as many steps per round as a cohort takes",
        message="nothing",
        state="none",
        ignores=("weighting", "message_dtype", "channel", "fleet"),
        because="sends no message",
    ),
)
ALGORITHMS: dict[str, OwnAlgorithm] = {each.name: each for each in _OWN}
"""The package's own algorithms by name; each can be called with the run's method options, a `MethodConfig`."""
