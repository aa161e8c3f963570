"""Random draws of a fleet: a function of the seed, a purpose and the client's id, like all draws of a run.

Adding, removing or reordering clients therefore never changes another client's device or its failures.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.federated.sampling import Purpose, run_key
from devft_jax.runtime.devices import host_device

DEVICES = 0
"""What draws of devices are for; rounds count from 1."""


@partial(jax.jit, static_argnums=3)
def _bits(seed: np.uint32, purpose: jax.Array, ids: jax.Array, number: int) -> jax.Array:
    key = jax.random.fold_in(run_key(seed, Purpose.FLEET), purpose)
    return jax.vmap(lambda client: jax.random.bits(jax.random.fold_in(key, client), (number,)))(ids)


def uniform_draws(seed: int, purpose: int, ids: np.ndarray, number: int) -> np.ndarray:
    """Numbers in (0, 1) for every client, f64[K, number].

    Args:
      seed: seed of the run.
      purpose: `DEVICES`, or the number of a round from 1.
      ids: u32[K], the clients' ids.
      number: draws of each client.
    """
    with jax.default_device(host_device()):
        bits = np.asarray(_bits(np.uint32(seed), jnp.uint32(purpose), jnp.asarray(ids, jnp.uint32), number))
    return (bits.astype(float) + 0.5) / 2.0**32
