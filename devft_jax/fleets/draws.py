"""Random draws of a fleet: a function of the seed, a purpose and the client's id, like all draws of a run.

Adding, removing or reordering clients therefore never changes another client's device or its failures.
"""

import numpy as np

from devft_jax.federated import sampling

DEVICES = 0
"""What draws of devices are for; rounds count from 1."""


def uniform_draws(seed: int, purpose: int, ids: np.ndarray, number: int) -> np.ndarray:
    """Numbers in (0, 1) for every client, f64[K, number].

    Args:
      seed: seed of the run.
      purpose: `DEVICES`, or the number of a round from 1.
      ids: u32[K], the clients' ids.
      number: draws of each client.
    """
    return sampling.uniform_draws(seed, sampling.Purpose.FLEET, purpose, ids, number)
