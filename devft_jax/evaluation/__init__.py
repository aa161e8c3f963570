"""What a model is judged by: held-out loss and exact match."""

from devft_jax.evaluation.held_out import Evaluation, EvaluationOptions, HeldOut

__all__ = ["Evaluation", "EvaluationOptions", "HeldOut"]
