"""Clients with the same mixture of data, and with different ones."""

from experiments.claims import Question
from experiments.scales import Base, Options
from experiments.study import Experiment, Part

SPLITS: dict[str, Options] = {
    "IID": {"partition": "iid"},
    "Dirichlet 1.0": {"partition": "dirichlet", "dirichlet_alpha": 1.0},
    "Dirichlet 0.1": {"partition": "dirichlet", "dirichlet_alpha": 0.1},
}


def parts(base: Base) -> list[Part]:
    """FedIT and DevFT on every split.

    Args:
      base: the model.
    """
    arms = {"FedIT": {"algorithm": "fedit"}, "DevFT": base.devft()}
    return [Part(arms=arms, name=name, options={**base.skewed, **split}) for name, split in SPLITS.items()]


EXPERIMENT = Experiment(
    name="heterogeneity",
    title="IID against skewed clients",
    about=(
        "FedIT and DevFT on clients whose categories are drawn alike (IID), or from a Dirichlet distribution. The paper "
        "has IID "
        "clients only. At the scale real the data is Dolly, because GSM8K has no categories."
    ),
    parts=parts,
    claims=[
        Question(f"{name}: FedIT", (f"{name}: DevFT",), f"How does DevFT differ from FedIT with {name} clients?")
        for name in SPLITS
    ],
    reference="IID: FedIT",
    scales=("demo", "real"),
)
