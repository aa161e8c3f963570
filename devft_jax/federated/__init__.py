"""Federated training: the algorithm record, one client, a cohort, and who takes part."""

from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.algorithms import ALGORITHMS

__all__ = ["ALGORITHMS", "Algorithm"]
