"""Types that every room of the package shares."""

from typing import Any, TypeAlias

PyTree: TypeAlias = Any
"""A tree of arrays: an array, or a tuple, list, dict or registered dataclass of trees.

JAX's functions take and return such trees (`jax.tree.map`). The name documents an argument; a type checker accepts anything
for it. A function that says what a tree's leaves are says it of every leaf.
"""
