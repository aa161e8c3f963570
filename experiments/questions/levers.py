"""What each lever of the recipe does alone, and DevFT under the same terms."""

from collections.abc import Sequence

from experiments.claims import Question
from experiments.questions.recipe import FEDIT, FEW, PROTOCOL, RATE, RECIPE, TERMS, fedit
from experiments.scales import Base
from experiments.study import Experiment, Part

LEVERS: dict[str, tuple[str, ...]] = {
    "rank 4, all projections": ("targets", "rank", "alpha"),
    "int8 up, bfloat16 down": ("channel", "message_dtype"),
}
"""Options of the recipe that FedIT is given one group at a time, over its own rounds."""
LONG = f"{FEW} rounds: long rounds"


def parts(base: Base) -> Sequence[Part]:
    """FedIT alone, with each group of the recipe's options, and DevFT.

    Args:
      base: the model.
    """
    shared = {**PROTOCOL, **base.unseen}
    levers = {name: fedit(**{option: RECIPE[option] for option in options}) for name, options in LEVERS.items()}
    devft = {
        "DevFT": base.devft(learning_rate=RATE, schedule="cosine-per-stage"),
        "DevFT, rising rates": base.devft(learning_rate=base.rates(len(base.capacities), RATE), schedule="cosine-per-stage"),
    }
    longer = fedit(local_steps=RECIPE["local_steps"], batch_size=RECIPE["batch_size"])
    return [
        Part(arms={FEDIT: fedit()} | levers | devft, options=shared),
        Part(arms={"long rounds": longer}, name=f"{FEW} rounds", options={**shared, "rounds": FEW}),
    ]


EXPERIMENT = Experiment(
    name="levers",
    title="The recipe's levers alone",
    about=(
        "FedIT with each group of the recipe's options alone, and DevFT at FedIT's rate and with the paper's rising ones, "
        "on the data and terms of the recipe."
    ),
    parts=parts,
    claims=(
        Question(FEDIT, (*LEVERS, LONG), "What does each lever do to FedIT's loss?"),
        Question(FEDIT, ("DevFT", "DevFT, rising rates"), "And how does DevFT end under the same terms?"),
    ),
    **TERMS,
)
