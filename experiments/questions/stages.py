"""The number of stages between the same first and last capacity."""

from experiments.claims import Question
from experiments.scales import Base
from experiments.study import Experiment, Part


def spaced(base: Base, stages: int) -> list[int]:
    """So many capacities in equal ratios from the first of the base's to all layers.

    Args:
      base: the model.
      stages: 2 or more.
    """
    first, last = base.capacities[0], base.layers
    if stages == len(base.capacities):
        return list(base.capacities)
    return [round(first * (last / first) ** (stage / (stages - 1))) for stage in range(stages)]


EXPERIMENT = Experiment(
    name="stages",
    title="Number of stages",
    about="Two to six stages with capacities in equal ratios from the same first stage to all layers, over the same rounds.",
    parts=lambda base: [Part(arms={f"{stages} stages": base.devft(spaced(base, stages)) for stages in (2, 3, 4, 5, 6)})],
    claims=(
        Question(
            "4 stages",
            ("2 stages", "3 stages", "5 stages", "6 stages"),
            "Is the paper's number of stages, 4, better or worse than others?",
        ),
    ),
    reference="4 stages",
)
