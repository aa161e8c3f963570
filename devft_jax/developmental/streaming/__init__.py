"""Linear algebra on the layer axis, one block of columns at a time.

A leaf `[L, ...]` stacks one weight of all L layers. As a matrix it has L rows and, at 7B, tens of millions of columns; Eq. 1
needs its Gram matrix and Eq. 5 its product with a `[G, L]` matrix, both in float32 although the weights are stored in 16 or
4 bits. A float32 copy of one such leaf is gigabytes, so every function here processes the columns in blocks whose float32
copy is a few megabytes and never more than about one float32 layer of that leaf.

Each function has two implementations, chosen by where the leaf is:

* In host memory (numpy, memory-mapped files included, and jax arrays on a CPU device) numpy works on it
with a few threads, without a copy of the leaf. The result is numpy or jax, like the input.
* Anything else, including tracers, goes through a `lax` loop over `dynamic_slice`. It can be jitted, differentiated
and lowered for every platform, no huge leaf is ever reshaped (a reshape may copy it), and all indices
count along one axis, so they fit 32 bits at any model size.

An opaque weight whose arrays have the same second axis (quantised in blocks along the first weight axis) is dequantised
block by block, any other as a whole.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.developmental.leaves import as_floats, is_concrete
from devft_jax.developmental.streaming import device, host


def gram(leaf: Any) -> jax.Array:
    """Inner products of the layers of one leaf: f32[L, L], exactly symmetric.

    Args:
      leaf: `[L, ...]`.
    """
    if isinstance(leaf, np.ndarray):
        return jnp.asarray(host.gram(np.asarray(leaf)), jnp.float32)
    return device.gram(leaf)


def combine(matrix: Any, leaf: Any) -> Any:
    """`matrix` times a leaf: `[G, ...]` in the leaf's dtype (f32 if opaque).

    Args:
      matrix: f32[G, L].
      leaf: `[L, ...]`.
    """
    view = host.as_numpy(leaf)
    if view is not None and is_concrete(matrix):
        return host.returned(host.combine(np.asarray(matrix), view), leaf)
    return device.combine(matrix, leaf)


def take(rows: np.ndarray, leaf: Any) -> Any:
    """Layers of a leaf as they are stored: nothing is rounded or dequantised.

    Args:
      rows: i32[G], the layers to take.
      leaf: `[L, ...]`.
    """
    if isinstance(leaf, np.ndarray):
        return leaf[rows]
    return jax.tree.map(lambda array: jnp.take(array, rows, axis=0), leaf)


def replace(source: Any, trained: Any, full: Any) -> Any:
    """Layer l of the result is `trained[source[l]]`, or `full[l]` if `source[l]` is -1.

    Args:
      source: i32[L].
      trained: `[G, ...]`.
      full: `[L, ...]`; the result has its dtype.
    """
    trained, full = as_floats(trained), as_floats(full)
    new, old = host.as_numpy(trained), host.as_numpy(full)
    if new is not None and old is not None and is_concrete(source):
        return host.returned(host.replace(np.asarray(source), new, old), full)
    return device.replace(source, trained, full)


def shift(matrix: Any, source: Any, trained: Any, full: Any) -> Any:
    """Layer l of the result is `full[l] + (trained - matrix @ full)[source[l]]`, or `full[l]` at -1.

    The sum is taken in float32.

    Args:
      matrix: f32[G, L].
      source: as in `replace`.
      trained: as in `replace`.
      full: as in `replace`.
    """
    trained, full = as_floats(trained), as_floats(full)
    new, old = host.as_numpy(trained), host.as_numpy(full)
    if new is not None and old is not None and is_concrete(source) and is_concrete(matrix):
        return host.returned(host.shift(np.asarray(matrix), np.asarray(source), new, old), full)
    return device.shift(matrix, source, trained, full)
