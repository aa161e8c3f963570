"""Beta, the weight of the differences in Eq. 5."""

from experiments.claims import Question
from experiments.study import Experiment, Part

OTHERS = (0.0, 0.05, 0.2, 0.5, "auto")

EXPERIMENT = Experiment(
    name="beta",
    title="Beta",
    about=(
        "The weight of each difference to the anchor in Eq. 5: the paper's 0.1 (0.15 on 13B), 0 (the anchor alone), "
        "larger ones, "
        "and auto, at most 1 / group size, with which no anchor gets a negative weight."
    ),
    parts=lambda base: [
        Part(arms={"the paper's": base.devft()} | {f"beta {beta}": base.devft(beta=beta) for beta in OTHERS})
    ],
    claims=(
        Question("the paper's", [f"beta {beta}" for beta in OTHERS], "Is the paper's beta better or worse than others?"),
    ),
    reference="the paper's",
)
