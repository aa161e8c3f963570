"""Every broadcast said out loud: arrays of fewer axes are brought beside those with more.

So that the code runs under `jax_numpy_rank_promotion=raise`. Importable by every room; needs JAX alone.
"""

import jax
import jax.numpy as jnp


def beside(array: jax.Array, other: jax.Array) -> jax.Array:
    """`array` [...] with leading axes of size 1 until it has as many axes as `other`, to be combined element by element."""
    return jnp.expand_dims(array, tuple(range(jnp.ndim(other) - jnp.ndim(array))))
