"""Evaluation of models: held-out loss and exact match; options for scores on benchmark tasks."""
