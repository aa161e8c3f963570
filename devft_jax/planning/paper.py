"""Communication as the paper counts it (Table 4 and Figure 6 of Wu et al. 2025), with the figures that it prints.

The paper counts low-rank parameters x rounds x 1 byte, in one direction, for one client, for the messages of FedIT and
FedSA-LoRA, end to end and through the stages of a growth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from devft_jax.accounting.communication import message_elements, round_messages
from devft_jax.config.methods import algorithm_of
from devft_jax.config.run_config import RunConfig
from devft_jax.developmental.schedule import equal_shares
from devft_jax.models.architecture import ARCHITECTURES, ModelConfig

PAPER_GIGABYTES = {
    "meta-llama/Llama-2-7b-hf": {"FedIT": 5.03, "FedIT + DevFT": 2.36, "FedSA-LoRA": 2.52, "FedSA-LoRA + DevFT": 1.18},
    "meta-llama/Llama-2-13b-hf": {"FedIT": 8.39, "FedIT + DevFT": 3.93, "FedSA-LoRA": 4.20, "FedSA-LoRA + DevFT": 1.97},
}
"""Communication in GB as Table 4 of the paper prints it, for rank 32 on q and v and stages of an eighth to all layers."""

PAPER_ROUNDS = {"meta-llama/Llama-2-7b-hf": 300, "meta-llama/Llama-2-13b-hf": 400}
"""Rounds that the paper states for these figures."""

METHODS = {"FedIT": "fedit", "FedSA-LoRA": "fedsa-lora"}
"""The algorithms of Table 4, by the paper's names."""


@dataclass(frozen=True)
class Convention:
    """A method's communication as the paper counts it.

    Attributes:
      bytes: for this plan's rounds.
      paper_gigabytes: the figure in the paper; None if it has none.
      paper_rounds: the rounds that the paper's figures imply.
      paper_bytes: this convention for those rounds.
    """

    bytes: int
    paper_gigabytes: float | None = None
    paper_rounds: int | None = None
    paper_bytes: int | None = None


def paper_model(architecture: ModelConfig) -> str | None:
    """The name of the paper's model with this architecture, wherever its files are; None if the paper has no figures for it.

    Args:
      architecture: of the base at full depth.
    """
    return next((name for name in PAPER_GIGABYTES if ARCHITECTURES[name] == architecture), None)


def paper_convention(
    config: RunConfig, architecture: ModelConfig, depths: Sequence[int], rounds: Sequence[int]
) -> dict[str, Convention]:
    """Low-rank parameters x rounds x 1 byte of FedIT and FedSA-LoRA, end to end and through the stages.

    Args:
      config: gives rank, targets and growth.
      architecture: of the base at full depth.
      depths: adapted layers of each stage.
      rounds: rounds of each stage.

    Returns:
      By method, named as in the paper's table; growths other than the paper's appear under their own names.
    """
    whole = architecture.layers
    growth = "DevFT" if config.growth == "devft" else config.growth
    elements = {method: _elements(config, architecture, name, {*depths, whole}) for method, name in METHODS.items()}
    printed = _printed(config, architecture, depths)
    implied = round(printed["FedIT"] * 1e9 / elements["FedIT"][whole]) if printed else None
    rows = {}
    for method, counts in elements.items():
        for title, layers in ((method, (whole,)), (f"{method} + {growth}", tuple(depths))):
            if title != method and layers == (whole,):
                continue
            own = _charged(counts, layers, rounds)
            if implied is None or title not in printed:
                rows[title] = Convention(own)
                continue
            at_papers_rounds = _charged(counts, layers, equal_shares(implied, len(depths)))
            rows[title] = Convention(own, printed[title], implied, at_papers_rounds)
    return rows


def _elements(config: RunConfig, architecture: ModelConfig, name: str, depths: set[int]) -> dict[int, int]:
    """Low-rank parameters that a client of an algorithm sends in a round, for each number of adapted layers."""
    algorithm = algorithm_of(RunConfig(algorithm=name, rank=config.rank, targets=config.targets))
    return {layers: message_elements(round_messages(algorithm, architecture, layers).up) for layers in depths}


def _charged(elements: Mapping[int, int], depths: Sequence[int], rounds: Sequence[int]) -> int:
    """Bytes of stages of these depths and rounds; a single depth gets all rounds."""
    rounds = (sum(rounds),) if len(depths) == 1 else rounds
    return sum(count * elements[layers] for layers, count in zip(depths, rounds, strict=True))


def _printed(config: RunConfig, architecture: ModelConfig, depths: Sequence[int]) -> dict[str, float]:
    """The paper's figures in GB for a configuration like this one, by method."""
    printed = PAPER_GIGABYTES.get(paper_model(architecture) or "", {})
    if config.rank != 32 or sorted(config.targets) != ["q", "v"]:
        return {}
    if tuple(depths) == tuple(architecture.layers // part for part in (8, 4, 2, 1)):
        return dict(printed)
    # End-to-end training has no stages, so its figures apply whatever the growth.
    return {name: printed[name] for name in printed if name in METHODS}
