"""Table 1: DevFT against six other methods."""

from collections.abc import Sequence

from experiments.claims import Beyond, Lower
from experiments.scales import Base
from experiments.study import Experiment, Part

OTHERS = ("FedIT", "DoFIT", "C2A", "ProgFed", "FLoRA", "FedSA-LoRA")


def methods(base: Base) -> Sequence[Part]:
    """The paper's seven methods, each with the best of the scale's learning rates.

    Args:
      base: the model with its data and protocol.
    """
    arms = {
        "FedIT": {"algorithm": "fedit"},
        "DoFIT": {"algorithm": "dofit"},
        "C2A": {"algorithm": "c2a"},
        "ProgFed": {"algorithm": "fedit", "growth": "progfed"},
        "FLoRA": {"algorithm": "flora"},
        "FedSA-LoRA": {"algorithm": "fedsa-lora"},
        "DevFT": base.devft(),
    }
    return [Part(arms=arms, tuned=True)]


EXPERIMENT = Experiment(
    name="table1",
    title="Table 1: methods",
    about=(
        "Seven methods over the same rounds, each with the learning rate that is best for it on another seed. The "
        "paper reports scores on TruthfulQA, MMLU, IFEval and BBH; here the measure is held-out loss."
    ),
    parts=methods,
    claims=(
        Lower(
            "DevFT",
            OTHERS,
            "DevFT has the best mean score on every model: 42.33, 64.25 and 52.77 (7B, 8B, 13B), against 41.00, 60.97 and "
            "50.84 of the best other method.",
        ),
        Lower(
            "ProgFed",
            ("FedIT",),
            "ProgFed is better than FedIT: 41.00 against 40.27 (7B), 60.12 against 55.35 (8B), 50.22 against 48.58 (13B).",
        ),
        Beyond(
            "DevFT has the best answers on Vicuna-Bench and MT-Bench.",
            "The paper's judge, GPT-4, cannot be asked here.",
        ),
    ),
    reference="FedIT",
    models=("LLaMA2-7B", "LLaMA3.1-8B", "LLaMA2-13B"),
    scored=True,
)
