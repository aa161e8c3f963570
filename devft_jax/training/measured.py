"""The run's growth with what it needs to know of the untuned base's layers, measured once and kept in the run's totals."""

import functools

import numpy as np

from devft_jax.developmental import Growth
from devft_jax.storage.records import RunTotals
from devft_jax.training.parts import Parts


def measured_growth(parts: Parts, totals: RunTotals) -> Growth:
    """The run's growth, with its measurements of the untuned base if it needs any.

    Args:
      parts: the run's parts.
      totals: the run's totals, which keep what was measured.
    """
    growth = parts.growth
    return growth if growth.measured else growth.prepared(functools.partial(_measured, parts, totals))


def _measured(parts: Parts, totals: RunTotals, kind: str = "influence") -> np.ndarray:
    """A measurement of the untuned base's layers, stored so that a resumed run chooses by the same figures."""
    if kind == "influence":
        if totals.block_influence is None:
            totals.block_influence = parts.block_influence()
        return np.asarray(totals.block_influence)
    if kind == "fisher":
        if totals.layer_fisher is None:
            totals.layer_fisher = parts.layer_fisher()
        return np.asarray(totals.layer_fisher)
    if totals.text_similarity is None:
        totals.text_similarity = parts.text_similarity(kind).tolist()
    return np.asarray(totals.text_similarity, np.float32)
