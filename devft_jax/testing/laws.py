"""The error for a violated law, and comparisons of found and expected values."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.models.adapter import Adapter, layer_scales
from devft_jax.typing import PyTree


class LawError(AssertionError):
    """A law that is violated. Names what was checked, the law, and the values found."""


def require(holds: Any, found: str) -> None:
    """Raise `LawError` unless a law holds.

    Args:
      holds: whether it holds.
      found: what was found instead, and how to correct it.
    """
    if not holds:
        raise LawError(found)


def described(tree: PyTree) -> list[str]:
    """Path, shape and dtype of every leaf.

    Args:
      tree: a tree of arrays or their shapes.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [f"{jax.tree_util.keystr(path) or 'it'} {leaf.dtype}{list(leaf.shape)}" for path, leaf in flat]


def require_same_shapes(what: str, found: PyTree, wanted: PyTree) -> None:
    """Raise `LawError` unless two trees have the same structure, and equal shapes and dtypes.

    Args:
      what: what the trees are, for the message.
      found: arrays or their shapes.
      wanted: the expected arrays or shapes.
    """
    new, old = described(found), described(wanted)
    if new != old:
        odd = [f"{left} in place of {right}" for left, right in zip(new, old, strict=False) if left != right]
        raise LawError(f"{what} changes: {odd[0] if odd else f'{len(new)} arrays in place of {len(old)}'}.")
    require(_same_structure(found, wanted), f"{what} changes its structure.")


def _same_structure(found: PyTree, wanted: PyTree) -> bool:
    one, other = jax.tree.structure(found), jax.tree.structure(wanted)
    return bool(one == other)  # type: ignore[operator]


def difference(found: PyTree, wanted: PyTree) -> float:
    """Largest absolute difference between two trees' leaves; infinite if their structures or shapes differ.

    Args:
      found: arrays.
      wanted: arrays.
    """
    if not _same_structure(found, wanted):
        return float("inf")
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return max((_apart(np.asarray(left), np.asarray(right)) for left, right in pairs), default=0.0)


def _apart(left: np.ndarray, right: np.ndarray) -> float:
    if left.shape != right.shape:
        return float("inf")
    if jnp.issubdtype(left.dtype, jax.dtypes.prng_key):
        return 0.0
    apart = np.abs(left.astype(np.float64) - right.astype(np.float64))
    return float(np.max(apart, initial=0.0)) if np.isfinite(apart).all() else float("inf")


def effect(adapter: Adapter) -> dict[str, Any]:
    """What an adapter adds to its base: delta + scale a b of every projection, f64[L, in, out], and a hypernetwork's leaves.

    Methods store the same model in different states, so models are compared by this.

    Args:
      adapter: any adapter.
    """
    total: dict[str, Any] = {name: np.asarray(leaf, np.float64) for name, leaf in adapter.delta.items()}
    if adapter.lora:
        scales = layer_scales(adapter, adapter.depth(otherwise=0))
        for name, factors in adapter.lora.items():
            product = np.asarray(factors.a, np.float64) @ np.asarray(factors.b, np.float64)
            total[name] = total.get(name, 0.0) + np.asarray(scales[name], np.float64)[:, None, None] * product
    if adapter.hyper is not None:
        total["hyper"] = jax.tree.map(np.asarray, adapter.hyper)
    return total


def effect_difference(one: Adapter, other: Adapter) -> float:
    """Largest difference between what two adapters add to the base; a projection that one lacks counts as zero.

    Args:
      one: an adapter.
      other: another adapter.
    """
    left, right = effect(one), effect(other)
    for name in {*left, *right}:
        left.setdefault(name, jax.tree.map(np.zeros_like, right.get(name)))
        right.setdefault(name, jax.tree.map(np.zeros_like, left[name]))
    return difference({name: left[name] for name in sorted(left)}, {name: right[name] for name in sorted(right)})
