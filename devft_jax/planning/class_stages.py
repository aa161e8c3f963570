"""What the participants of a stage cost together where classes of clients hold different layers.

Without a fleet the participants' classes are those that the run draws. With one, participants are assumed to have the shares
of the classes among the clients that can take part, because who is present is simulated only by `devft_jax.planning.fleet`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from devft_jax.accounting.communication import newcomers
from devft_jax.planning.classes import ClassPlan
from devft_jax.planning.plan import StagePlan
from devft_jax.training.classes import NO_CLASS, ClientClasses


def with_classes(
    stage: StagePlan, plans: Sequence[ClassPlan], classes: ClientClasses, cohorts: Sequence[np.ndarray], *, fleet: bool
) -> StagePlan:
    """A stage's plan with the bytes and operations of its participants' classes.

    Args:
      stage: the plan as if all held the same.
      plans: the classes of the stage.
      classes: the clients' classes.
      cohorts: indices of each round's participants.
      fleet: whether the run has a fleet.
    """
    number = len(plans)
    all_of = classes.of[classes.of != NO_CLASS] if fleet else classes.of[np.concatenate(cohorts)]
    share = np.bincount(all_of, minlength=number) / max(len(all_of), 1)
    taken = share * sum(map(len, cohorts))

    def total(name: str) -> int:
        return round(float(sum(count * getattr(plan, name) for count, plan in zip(taken, plans, strict=True))))

    new = sum(newcomers(cohorts))
    submodels = sum(part * plan.submodel for part, plan in zip(share, plans, strict=True))
    return dataclasses.replace(
        stage,
        message_up=max(plan.message_up for plan in plans),
        message_down=max(plan.message_down for plan in plans),
        bytes_up=total("message_up"),
        bytes_down=total("message_down"),
        bytes_stage=round(float(new * submodels)),
        train_flops=total("round_flops"),
        classes=tuple(plans),
    )
