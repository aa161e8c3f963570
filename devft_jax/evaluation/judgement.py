"""The result of an evaluation: of the global model, or of the clients' own models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from devft_jax.evaluation.held_out import Evaluation
from devft_jax.storage.result_records import PersonalRecord


@dataclass(frozen=True)
class Judgement:
    """One evaluation of a run. If models are personal and there is no global one, the figures are means over clients.

    Attributes:
      loss: nats per completion token.
      accuracy: share of examples answered exactly.
      personal: the results of the clients' own models; None for a global model.
    """

    loss: float
    accuracy: float
    personal: PersonalRecord | None = None

    @classmethod
    def over_clients(cls, evaluations: Sequence[Evaluation]) -> Self:
        """The unweighted mean over the clients' own models, all evaluated on the same examples."""
        losses = np.array([evaluation.loss for evaluation in evaluations])
        accuracies = np.array([evaluation.accuracy for evaluation in evaluations])
        personal = PersonalRecord(
            loss=float(losses.mean()),
            accuracy=float(accuracies.mean()),
            losses=losses.tolist(),
            accuracies=accuracies.tolist(),
            loss_spread=float(losses.std()),
            accuracy_spread=float(accuracies.std()),
        )
        return cls(personal.loss, personal.accuracy, personal)
