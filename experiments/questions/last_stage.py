"""DevFT against its last stage alone."""

from experiments.claims import Lower
from experiments.scales import Base
from experiments.study import Experiment, Part

ALONE = "a quarter of the rounds"


def parts(base: Base) -> list[Part]:
    """FedIT and DevFT over all rounds, and FedIT over those that DevFT spends on the full model.

    Args:
      base: the model.
    """
    fewer = {"rounds": max(1, base.rounds // len(base.capacities))}
    return [
        Part(arms={"FedIT": {"algorithm": "fedit"}, "DevFT": base.devft()}),
        Part(arms={"FedIT": {"algorithm": "fedit"}}, name=ALONE, options=fewer),
    ]


EXPERIMENT = Experiment(
    name="last_stage",
    title="The last stage alone",
    about=(
        "DevFT's last stage trains the full model, as FedIT does. What the stages before it are worth is the difference "
        "to a run "
        "that is nothing but such a last stage: FedIT over a quarter of the rounds."
    ),
    parts=parts,
    claims=(
        Lower("DevFT", (f"{ALONE}: FedIT",), "The gains come from the early stages, in which foundations are learned."),
        Lower("DevFT", ("FedIT",), "DevFT is better than FedIT over the same rounds (Tables 1 and 4)."),
    ),
    reference="DevFT",
)
