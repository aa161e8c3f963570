"""What held-out data says of a run: of its global model, or of the models that its clients have of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from devft_jax.evaluation.held_out import Evaluation


@dataclass(frozen=True)
class Judgement:
    """One measurement.

    Attributes:
      loss: nats per completion token. accuracy: share of examples answered exactly. Means over clients where models are
        personal and none stands for all of them.
      personal: of clients' own models, JSON-ready: `losses` and `accuracies` by client, their means `loss` and `accuracy`
        and standard deviations over clients, `loss_spread` and `accuracy_spread`; None where only a global one was judged.
    """

    loss: float
    accuracy: float
    personal: dict[str, Any] | None = None

    @classmethod
    def over_clients(cls, evaluations: Sequence[Evaluation]) -> Self:
        """The plain mean over the clients' own models, each on the same examples."""
        losses = np.array([evaluation.loss for evaluation in evaluations])
        accuracies = np.array([evaluation.accuracy for evaluation in evaluations])
        personal = {
            "loss": float(losses.mean()),
            "accuracy": float(accuracies.mean()),
            "losses": losses.tolist(),
            "accuracies": accuracies.tolist(),
            "loss_spread": float(losses.std()),
            "accuracy_spread": float(accuracies.std()),
        }
        return cls(float(losses.mean()), float(accuracies.mean()), personal)
