"""Evaluation of models: held-out loss and exact match; options for scores on benchmark tasks."""

from devft_jax.evaluation.benchmarks import TaskScoreOptions
from devft_jax.evaluation.held_out import Evaluation, EvaluationOptions, HeldOut
from devft_jax.evaluation.judgement import Judgement

__all__ = ["Evaluation", "EvaluationOptions", "HeldOut", "Judgement", "TaskScoreOptions"]
