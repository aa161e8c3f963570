"""Table 2: how layers are grouped."""

from experiments.claims import Lower
from experiments.study import Experiment, Part

EXPERIMENT = Experiment(
    name="table2",
    title="Table 2: grouping",
    about=(
        "DevFT with its own grouping by similarity (DGLG), with random groups, and with even ones. The paper does "
        "not define Even, so there are two: contiguous blocks, and every n-th layer."
    ),
    parts=lambda base: [
        Part(
            arms={
                "DGLG": base.devft(),
                "random": base.devft(grouping="random"),
                "even blocks": base.devft(grouping="even_blocks"),
                "even strides": base.devft(grouping="even_strides"),
            }
        )
    ],
    claims=(
        Lower("DGLG", ("random",), "DGLG is better than Random: 42.33 against 39.90 (7B), 64.25 against 60.69 (8B)."),
        Lower(
            "DGLG",
            ("even blocks", "even strides"),
            "DGLG is better than Even: 42.33 against 36.25 (7B), 64.25 against 57.76 (8B).",
        ),
        Lower(
            "random",
            ("even blocks", "even strides"),
            "Random is better than Even: 39.90 against 36.25 (7B), 60.69 against 57.76 (8B).",
        ),
    ),
    reference="DGLG",
    models=("LLaMA2-7B", "LLaMA3.1-8B"),
)
