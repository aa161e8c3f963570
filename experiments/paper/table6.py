"""Table 6: how fast the model grows."""

from experiments.claims import Lower
from experiments.study import Experiment, Part

EXPERIMENT = Experiment(
    name="table6",
    title="Table 6: growth rate",
    about=(
        "Stages that grow twofold, fourfold and eightfold from the same first stage, over the same rounds. With fewer "
        "stages the "
        "full model trains in more of the rounds, and sends more."
    ),
    parts=lambda base: [
        Part(
            arms={
                "x2": base.devft(),
                "x4": base.devft([base.capacities[0], base.capacities[2], base.layers]),
                "x8": base.devft([base.capacities[0], base.layers]),
            }
        )
    ],
    claims=(
        Lower("x2", ("x4",), "Twofold growth is better than fourfold: 42.33 against 39.80 (7B), 52.77 against 46.47 (13B)."),
        Lower("x2", ("x8",), "It is better than eightfold: 42.33 against 37.08 (7B), 52.77 against 41.17 (13B)."),
        Lower(
            "x4", ("x8",), "Fourfold growth is better than eightfold: 39.80 against 37.08 (7B), 46.47 against 41.17 (13B)."
        ),
    ),
    reference="x2",
    models=("LLaMA2-7B", "LLaMA2-13B"),
)
