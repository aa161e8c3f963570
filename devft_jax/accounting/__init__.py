"""Arithmetic on shapes and measurements of the process: what a run costs."""

from devft_jax.accounting.flops import training_flops
from devft_jax.accounting.memory import peak_memory

__all__ = ["peak_memory", "training_flops"]
