"""The paper's learning rates, which rise from stage to stage, against one rate."""

from experiments.claims import Question
from experiments.study import Experiment, Part

ONE, FALLING, RISING = "one rate", "one rate, one cosine", "rising rates"

EXPERIMENT = Experiment(
    name="rates",
    title="Rising rates against one",
    about=(
        "DevFT with one rate whose cosine begins anew in every stage, with one cosine over all rounds, and with the "
        "paper's rates: "
        "a hundredth and a tenth of that rate in the first two stages."
    ),
    parts=lambda base: [
        Part(
            arms={
                ONE: base.devft(learning_rate=[base.rate]),
                FALLING: base.devft(learning_rate=[base.rate], schedule="cosine"),
                RISING: base.devft(learning_rate=base.rates(len(base.capacities))),
            }
        )
    ],
    claims=(Question(ONE, (FALLING, RISING), "Do the paper's rising rates help?"),),
    reference=ONE,
)
