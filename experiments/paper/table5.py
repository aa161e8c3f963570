"""Table 5: layers of the first stage."""

from collections.abc import Sequence

from experiments.claims import Lower
from experiments.scales import Base
from experiments.study import Experiment, Part


def doubling(base: Base, divisor: int) -> list[int]:
    """Capacities that double from a part of the model's layers to all of them.

    Args:
      base: the model.
      divisor: the first stage has the layers divided by this power of two.
    """
    capacities = []
    while divisor:
        capacities.append(base.part_of_depth(divisor))
        divisor //= 2
    return capacities


def initial_capacities(base: Base) -> Sequence[Part]:
    """First stages of a thirty-second part of the layers to all of them, of which a small model has fewer.

    Args:
      base: the model.
    """
    found = {"L" if divisor == 1 else f"L/{divisor}": doubling(base, divisor) for divisor in (32, 16, 8, 4, 2, 1)}
    return [Part(arms={name: base.devft(layers) for name, layers in found.items() if len(set(layers)) == len(layers)})]


EXPERIMENT = Experiment(
    name="table5",
    title="Table 5: initial capacity",
    about=(
        "The layers of the first stage, which then double to all L, over the same rounds. The paper has 1, 2, 4, 8, 16 "
        "and 32 of "
        "32 layers on LLaMA3.1-8B; here they are the same parts of L."
    ),
    parts=initial_capacities,
    claims=(
        Lower(
            "L/8",
            ("L/16", "L/32"),
            "A first stage of 4 layers is better than smaller ones: 64.25 against 62.78 (2 layers) and 61.56 (1).",
        ),
        Lower(
            "L/8",
            ("L/4", "L/2", "L"),
            "It is better than larger ones: 64.25 against 62.33 (8 layers), 60.28 (16) and 58.09 (32, all).",
        ),
    ),
    reference="L/8",
    models=("LLaMA3.1-8B",),
)
