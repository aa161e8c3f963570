"""Benchmark scores of the final models: the untuned base, FedIT, DevFT and the recipe."""

from collections.abc import Sequence

from experiments.claims import Question
from experiments.questions.recipe import FEDIT, FEW, PROTOCOL, RATE, RECIPE, TERMS, WHOLE, fedit
from experiments.scales import Base
from experiments.study import Experiment, Part


def parts(base: Base) -> Sequence[Part]:
    """FedIT and DevFT, and the recipe, which has fewer rounds.

    Args:
      base: the model.
    """
    shared = {**PROTOCOL, **base.unseen}
    devft = base.devft(learning_rate=RATE, schedule="cosine-per-stage")
    return [
        Part(arms={FEDIT: fedit(), "DevFT": devft}, options=shared),
        Part(arms={"recipe": RECIPE}, name=f"{FEW} rounds", options={**shared, "rounds": FEW}),
    ]


EXPERIMENT = Experiment(
    name="scores",
    title="Benchmark scores",
    about=(
        "The final models of one seed, trained on CodeAlpaca on the recipe's terms, on the tasks `quick`: ARC-Easy and PIQA "
        "(300 questions each), TruthfulQA (200) and MMLU (5 shots, 5 questions of each subject), counted as "
        "lm-evaluation-harness does. Intervals are over the questions, not over seeds. None of the tasks is about code: "
        "they show what tuning leaves of the rest."
    ),
    parts=parts,
    claims=(Question(FEDIT, ("DevFT", WHOLE), "How do the losses of the models differ?"),),
    scored=True,
    **{**TERMS, "seeds": (0,), "shown": "final_loss"},
)
