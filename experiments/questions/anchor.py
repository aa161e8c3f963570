"""Which layer of a group is the anchor of Eq. 5."""

from experiments.claims import Question
from experiments.study import Experiment, Part

EXPERIMENT = Experiment(
    name="anchor",
    title="Anchor",
    about="Eq. 5 around the first layer of each group, as in the paper, and around its middle or last layer.",
    parts=lambda base: [
        Part(
            arms={
                "first layer": base.devft(),
                "middle layer": base.devft(growth="experiments.growths:middle_anchor"),
                "last layer": base.devft(growth="experiments.growths:last_anchor"),
            }
        )
    ],
    claims=(Question("first layer", ("middle layer", "last layer"), "Does it matter which layer is the anchor?"),),
    reference="first layer",
)
