"""Which submodels are worth training: measured on the untuned model, before anything is trained.

    config, plans, depths  ->  every plan's submodel: its loss, its alignment with the full model, what a step of it costs

`devft_jax.probing.probe` does it; `plans` makes the submodels with the growths' own code,
`devft_jax.training.alignment` compares their gradients, and `formats` shows the results as a table, JSON, CSV and a figure.
"""
