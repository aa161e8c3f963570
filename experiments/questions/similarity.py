"""Which weights are compared in Eq. 1."""

from experiments.claims import Question
from experiments.study import Experiment, Part

OTHERS = {
    "without norms": "without_norms",
    "norms alone": "norms_alone",
    "attention alone": "attention_alone",
    "feed-forward alone": "feed_forward_alone",
}

EXPERIMENT = Experiment(
    name="similarity",
    title="What Eq. 1 compares",
    about=(
        "The cosine of all weights of two layers, their LoRA included, and of some of them. What is compared decides "
        "the groups, and only these: the fusion is always of all weights."
    ),
    parts=lambda base: [
        Part(
            arms={"all weights": base.devft()}
            | {name: base.devft(growth=f"experiments.growths:{growth}") for name, growth in OTHERS.items()}
        )
    ],
    claims=(Question("all weights", list(OTHERS), "Does it matter which weights are compared?"),),
    reference="all weights",
)
