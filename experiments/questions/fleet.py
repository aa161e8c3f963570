"""Held-out loss against simulated hours, on a fleet whose devices do not all hold the full model."""

from pathlib import Path

from experiments.claims import Question
from experiments.scales import Base
from experiments.study import Experiment, Part

TABLE = Path(__file__).parent.parent / "fleets" / "tiered.csv"
"""Twenty devices for the bundled model: phones, laptops, single-board computers and workstations."""

FEDIT, DEVFT, TOP, FEDRA, LEGEND, TIERS = "FedIT", "DevFT", "top-grow", "FedRA", "LEGEND", "DevFT by tier"


def parts(base: Base) -> list[Part]:
    """FedIT on the devices that hold the full model, growths on those that hold their stage, and classes of clients.

    Args:
      base: the model.
    """
    layers = list(base.capacities)
    arms = {
        FEDIT: {"algorithm": "fedit"},
        DEVFT: base.devft(),
        TOP: {"algorithm": "fedit", "growth": "top-grow", "capacities": layers},
        FEDRA: {"algorithm": "fedit", "growth": "fedra", "class_layers": layers},
        LEGEND: {"algorithm": "fedit", "growth": "legend", "class_layers": layers},
        TIERS: base.devft(by_tier=True),
    }
    return [Part(arms=arms, options={"fleet": str(TABLE)})]


EXPERIMENT = Experiment(
    name="fleet",
    title="Weak and strong devices",
    about=(
        "Loss against simulated time on twenty devices of four kinds, and the share of them that could join (mean over the "
        "rounds). The bundled model is so small that every real device holds it at once, so these devices have the figures "
        "of `devft_jax.fleets.tiers` with a hundredth of the memory and bandwidth and a thousandth of the computing, "
        "and they are always present."
    ),
    parts=parts,
    claims=[
        Question(FEDIT, (DEVFT, TOP, FEDRA, LEGEND, TIERS), "How do methods differ in loss where weak devices can join?"),
    ],
    reference=FEDIT,
    shown="simulated_seconds",
    scales=("demo",),
)
