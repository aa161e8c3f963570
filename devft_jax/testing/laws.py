"""A broken law, and how what was found is compared with what should be there."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.models.adapter import Adapter, layer_scales
from devft_jax.typing import PyTree


class LawError(AssertionError):
    """A law that does not hold. Names what was checked, the law, and what was found."""


def require(holds: Any, found: str) -> None:
    """Raise `LawError` unless a law holds.

    Args:
      holds: whether it does.
      found: what is there instead, and what to do.
    """
    if not holds:
        raise LawError(found)


def described(tree: PyTree) -> list[str]:
    """Path, shape and dtype of every leaf.

    Args:
      tree: of arrays or their shapes.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [f"{jax.tree_util.keystr(path) or 'it'} {leaf.dtype}{list(leaf.shape)}" for path, leaf in flat]


def require_same_shapes(what: str, found: PyTree, wanted: PyTree) -> None:
    """Raise `LawError` unless two trees have one structure, and their leaves one shape and dtype each.

    Args:
      what: they are.
      found: arrays or their shapes.
      wanted: the same.
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
    """Largest absolute difference of two trees' leaves, infinite where they do not fit each other.

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
    """What a model adds to its base: delta + scale a b of every projection, f64[L, in, out], and a hypernetwork's leaves.

    Methods keep the same model in different states, so that models are compared by this.

    Args:
      adapter: any.
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
    """Largest difference of what two models add to their base; a projection that one lacks counts as zero there.

    Args:
      one: a model.
      other: another.
    """
    left, right = effect(one), effect(other)
    for name in {*left, *right}:
        left.setdefault(name, jax.tree.map(np.zeros_like, right.get(name)))
        right.setdefault(name, jax.tree.map(np.zeros_like, left[name]))
    return difference({name: left[name] for name in sorted(left)}, {name: right[name] for name in sorted(right)})
