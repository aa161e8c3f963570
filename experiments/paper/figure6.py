"""Figure 6: communication of the methods."""

from experiments.claims import Factor
from experiments.paper.table1 import methods
from experiments.study import Experiment

EXPERIMENT = Experiment(
    name="figure6",
    title="Figure 6: communication",
    about=(
        "The runs of Table 1; bytes are those that all clients send up, in float32. The fused layers of the stages, "
        "which go down "
        "unless clients fuse them themselves, are not among them, as in the paper."
    ),
    parts=methods,
    claims=(
        Factor("DevFT", "C2A", "bytes_up", 10.67, "DevFT sends 10.67 times less than C2A: 3.93 against 41.95 GB (13B)."),
        Factor("DevFT", "FedIT", "bytes_up", 2.13, "DevFT sends 2.13 times less than FedIT: 2.36 against 5.03 GB (7B)."),
        Factor(
            "DevFT",
            "FedIT",
            "bytes_to_target",
            1.0,
            "DevFT converges with less communication: it reaches FedIT's final loss.",
        ),
    ),
    reference="FedIT",
    shown="bytes_up",
    models=("LLaMA2-7B", "LLaMA2-13B"),
)
