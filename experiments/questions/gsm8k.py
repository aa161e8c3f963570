"""The recipe on GSM8K, on which nothing of it was tuned."""

from experiments.questions.recipe import on_other_data

EXPERIMENT = on_other_data("gsm8k", "GSM8K", lambda base: {})
