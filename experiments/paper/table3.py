"""Table 3: how a group is fused into one layer."""

from experiments.claims import Lower, Question
from experiments.study import Experiment, Part

EXPERIMENT = Experiment(
    name="table3",
    title="Table 3: fusion",
    about=(
        "DevFT with its own fusion (DBLF, Eq. 5), with one random layer of each group (R-One), and with the sum of its "
        "layers; "
        "beside them the first layer alone (the other reading of R-One) and the mean."
    ),
    parts=lambda base: [
        Part(
            arms={
                "DBLF": base.devft(),
                "R-One": base.devft(fusion="r_one"),
                "Sum": base.devft(fusion="sum"),
                "anchor": base.devft(fusion="anchor"),
                "mean": base.devft(fusion="mean"),
            }
        )
    ],
    claims=(
        Lower("DBLF", ("R-One",), "DBLF is better than R-One: 42.33 against 37.72 (7B), 64.25 against 53.29 (8B)."),
        Lower("DBLF", ("Sum",), "DBLF is better than Sum: 42.33 against 40.90 (7B), 64.25 against 61.20 (8B)."),
        Lower("Sum", ("R-One",), "Sum is better than R-One: 40.90 against 37.72 (7B), 61.20 against 53.29 (8B)."),
        Question("DBLF", ("anchor", "mean"), "Is DBLF better than the anchor alone, or the mean of the group?"),
    ),
    reference="DBLF",
    models=("LLaMA2-7B", "LLaMA3.1-8B"),
)
