"""The result of an evaluation: of the global model, or of the clients' own models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from devft_jax.evaluation.held_out import Evaluation


@dataclass(frozen=True)
class Judgement:
    """One evaluation of a run. Where models are personal and there is no global one, figures are means over clients.

    Attributes:
      loss: nats per completion token.
      accuracy: share of examples answered exactly.
      personal: of the clients' own models, JSON-ready: `losses` and `accuracies` by client, their means `loss` and
        `accuracy`, and their standard deviations over clients, `loss_spread` and `accuracy_spread`; None for a global model.
    """

    loss: float
    accuracy: float
    personal: dict[str, Any] | None = None

    @classmethod
    def over_clients(cls, evaluations: Sequence[Evaluation]) -> Self:
        """The plain mean over the clients' own models, all evaluated on the same examples."""
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
