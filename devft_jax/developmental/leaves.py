"""Trees of stacked layers: every leaf is a float array `[L, ...]`, or an opaque weight that can be converted to one.

A weight with a `dequantize(dtype)` method is one opaque leaf. It must be a pytree whose arrays all begin with axis L (as for
a `scan` over layers).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer


def is_opaque(leaf: Any) -> bool:
    """True for a weight that can `dequantize`: one leaf, whatever arrays it consists of.

    Args:
      leaf: a leaf of a tree of weights.
    """
    return hasattr(leaf, "dequantize")


def is_concrete(array: Any) -> bool:
    """True for an array whose values can be read, False for a tracer.

    Args:
      array: any array.
    """
    return not isinstance(array, Tracer)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree with their `jax.tree_util.keystr` paths; an opaque weight counts as one leaf.

    Args:
      tree: any pytree of weights.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_opaque)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in flat]


def map_leaves(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` that treats an opaque weight as one leaf.

    Args:
      function: called with one leaf of every tree.
      tree: any pytree of weights.
      rest: further trees of the same structure.
    """
    return jax.tree.map(function, tree, *rest, is_leaf=is_opaque)


def weight_shape(leaf: Any) -> tuple[int, ...]:
    """Shape of a leaf as a float array; `()` for a leaf without a shape.

    Args:
      leaf: an array or an opaque weight.
    """
    if is_opaque(leaf):
        return jax.eval_shape(lambda w: w.dequantize(jnp.float32), leaf).shape
    return getattr(leaf, "shape", ())


def count_layers(tree: Any, *, expected: int | None = None) -> int:
    """L, after checking that every leaf is a float array whose first axis is L.

    Args:
      tree: any pytree of weights.
      expected: the L that a layer map requires; without it the first leaf decides.

    Raises:
      ValueError: a leaf does not fit; the message names the first such leaf.
    """
    leaves = named_leaves(tree)
    if not leaves:
        raise ValueError("The tree has no leaves: give a pytree of arrays whose first axis is the layers.")
    source = "the layer map" if expected is not None else f"leaf {leaves[0][0] or 'root'}"
    for path, leaf in leaves:
        shape = weight_shape(leaf)
        if not shape:
            raise ValueError(
                f"Leaf {path or 'root'} has shape () and so no layer axis: stack one value per layer on axis 0."
            )
        expected = shape[0] if expected is None else expected
        if shape[0] != expected:
            raise ValueError(
                f"Leaf {path or 'root'} has shape {shape}, but axis 0 must hold the {expected} layers "
                f"of {source}: stack the per-layer weights of all leaves on axis 0."
            )
        if not is_opaque(leaf) and not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"Leaf {path or 'root'} has dtype {leaf.dtype}, which cannot be fused or compared: "
                "give float weights, or a weight with a dequantize(dtype) method."
            )
    assert expected is not None
    return expected


def as_floats(leaf: Any) -> Any:
    """The leaf itself, or an opaque weight in float32.

    Args:
      leaf: a leaf of a tree of weights.
    """
    return leaf.dequantize(jnp.float32) if is_opaque(leaf) else leaf
