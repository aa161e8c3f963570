"""Figure 5: training time of the methods."""

from experiments.claims import Beyond, Factor
from experiments.paper.table1 import methods
from experiments.study import Experiment

EXPERIMENT = Experiment(
    name="figure5",
    title="Figure 5: time",
    about=(
        "The runs of Table 1. The paper's convergence time is that of all rounds, by its own numbers; the time until "
        "a method reaches FedIT's final loss is given beside it."
    ),
    parts=methods,
    claims=(
        Factor(
            "DevFT", "C2A", "seconds_train", 4.59, "DevFT takes 4.59 times less time than C2A: 0.81 against 3.72 h (7B)."
        ),
        Factor(
            "DevFT", "FedIT", "seconds_train", 3.0, "DevFT takes 3.0 times less time than FedIT: 0.83 against 2.49 h (7B)."
        ),
        Factor(
            "DevFT",
            "FedIT",
            "seconds_to_target",
            1.0,
            "DevFT converges faster: it reaches FedIT's final loss in less time.",
        ),
        Beyond("The bars of the other methods.", "The paper's text does not give them."),
    ),
    reference="FedIT",
    shown="seconds_train",
    scales=("demo", "real"),
)
