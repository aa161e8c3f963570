"""Figure 7: cost of a round in every stage."""

from experiments.claims import Factor
from experiments.study import Experiment, Part

FEDIT = "FedIT, stage 1"

EXPERIMENT = Experiment(
    name="figure7",
    title="Figure 7: cost of a round by stage",
    about=(
        "Time, bytes and memory of one round in each of DevFT's stages, and of FedIT. Memory is that of a client, as "
        "planned."
    ),
    parts=lambda base: [Part(arms={"FedIT": {"algorithm": "fedit"}, "DevFT": base.devft()})],
    claims=(
        Factor(
            "DevFT, stage 1",
            FEDIT,
            "seconds_of_a_round",
            10.3,
            "A round of the first stage takes 10.3 times less time (7B).",
        ),
        Factor("DevFT, stage 1", FEDIT, "bytes_of_a_round", 4.0, "A round of the first stage sends 4 times less (7B)."),
        Factor("DevFT, stage 1", FEDIT, "client_memory", 4.0, "The first stage needs 4 times less memory (7B)."),
        Factor(
            "DevFT, stage 4",
            FEDIT,
            "seconds_of_a_round",
            1.44,
            "A round of the last stage, with all layers, is still 1.44 times faster (7B).",
        ),
    ),
    reference=FEDIT,
    shown="seconds_of_a_round",
    by_stage=True,
)
