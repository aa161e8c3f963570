"""The recipe on Dolly, on which nothing of it was tuned."""

from experiments.questions.recipe import on_other_data

EXPERIMENT = on_other_data("dolly", "Dolly", lambda base: base.skewed)
