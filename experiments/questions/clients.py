"""20 clients against 100."""

from experiments.claims import Question
from experiments.scales import Base
from experiments.study import Experiment, Part

NUMBERS = (20, 100)


def parts(base: Base) -> list[Part]:
    """FedIT and DevFT with every number of clients.

    Args:
      base: the model.
    """
    arms = {"FedIT": {"algorithm": "fedit"}, "DevFT": base.devft()}
    return [Part(arms=arms, name=f"{number} clients", options={"clients": number}) for number in NUMBERS]


EXPERIMENT = Experiment(
    name="clients",
    title="20 clients against 100",
    about=(
        "The same examples over 20 and over 100 clients, of which two take part in a round: with 100, each has a fifth "
        "of the "
        "examples, and most never take part."
    ),
    parts=parts,
    claims=[
        Question(
            f"{number} clients: FedIT", (f"{number} clients: DevFT",), f"How does DevFT differ from FedIT with {number}?"
        )
        for number in NUMBERS
    ],
    reference="20 clients: FedIT",
    scales=("demo", "real"),
)
