"""Types that the whole package shares."""

from typing import Any, TypeAlias

PyTree: TypeAlias = Any
"""A tree of arrays: an array, or a tuple, list, dict or registered dataclass of trees.

JAX's functions take and return such trees (`jax.tree.map`). The name documents an argument; a type checker accepts anything
for it. What a docstring says about a tree's leaves holds for every leaf.
"""
