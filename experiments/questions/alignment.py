"""Does the probe predict what training a submodel gains?"""

from collections.abc import Sequence

from devft_jax.comparing.arms import method_and_options
from devft_jax.probing.options import DEFAULT_PLANS
from experiments.claims import Predicts
from experiments.scales import Base
from experiments.study import Experiment, Part

PLANS = [plan for plan in DEFAULT_PLANS if plan != "progfed"]
"""ProgFed's stages end with the full model, so that a prefix cannot be trained alone."""


def arm_of(plan: str, layers: int) -> dict[str, object]:
    """Options of a run that trains nothing but one submodel of a plan.

    Args:
      plan: a plan of `devft probe`.
      layers: layers of the submodel.
    """
    growth, options = method_and_options(plan)
    own = dict(option.split("=", 1) for option in options)
    return {"algorithm": "fedit", "growth": growth, "capacities": [layers], **own}


def parts(base: Base) -> Sequence[Part]:
    """Every plan of the probe with a quarter and with half of the layers, trained in a single stage.

    Args:
      base: the model.
    """
    plans = {f"{plan}, {layers} layers": (plan, layers) for layers in base.capacities[-3:-1] for plan in PLANS}
    return [Part(arms={name: arm_of(*plan) for name, plan in plans.items()}, probed=plans)]


EXPERIMENT = Experiment(
    name="alignment",
    title="Does the probe predict the gain?",
    about=(
        "Every default plan of `devft probe` except `progfed`, with a quarter and with half of the layers, trained in one "
        "stage over all rounds; nothing grows. The gain is what the full model's held-out loss falls by. The probe measures "
        "before anything is trained: the alignment of the submodel's LoRA gradient with the full model's, and the "
        "submodel's loss."
    ),
    parts=parts,
    claims=(
        Predicts("alignment", 0.7, "Is the order of the gains that of the alignments (rank correlation of 0.7 or more)?"),
        Predicts("untrained_loss", -0.7, "Is it the order of the submodels' untrained losses, lowest first (-0.7 or less)?"),
    ),
    reference="top-grow, 8 layers",
    shown="gain",
    scales=("demo",),
)
