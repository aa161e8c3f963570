"""Names and shapes of a model's tensors in Hugging Face's layout, and where each one belongs in a `Base`.

Hugging Face stores linear weights `[out, in]`, one tensor per layer; a `Base` holds them `[L, in, out]`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from devft_jax.models.base import Block

PROJECTION_MODULES = {name: f"{'self_attn' if name in ('q', 'k', 'v', 'o') else 'mlp'}.{name}_proj" for name in PROJECTIONS}
"""Path of each projection inside a Hugging Face decoder layer, such as `self_attn.q_proj`."""

NORM_MODULES = {
    "norm_attention": "input_layernorm",
    "norm_mlp": "post_attention_layernorm",
    "norm_q": "self_attn.q_norm",
    "norm_k": "self_attn.k_norm",
}
"""Path of each norm of a block inside a Hugging Face decoder layer."""

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

BIAS = "bias_"
"""Prefix that makes the name of a projection the name of its bias leaf."""


class Place(NamedTuple):
    """Where a tensor belongs.

    Attributes:
      leaf: name of the leaf; see `block_tensors`.
      layer: its layer in the leaf; None for a leaf without layers.
      shape: shape of the tensor in its file.
      transposed: whether the leaf holds the transpose.
    """

    leaf: str
    layer: int | None
    shape: tuple[int, ...]
    transposed: bool


def places(config: ModelConfig) -> Iterator[tuple[str, Place]]:
    """Every tensor in a checkpoint of this architecture, layer by layer, so that a missing one is found early.

    Args:
      config: the architecture.
    """
    vocabulary = (config.vocabulary, config.width)
    yield EMBEDDING, Place("embed", None, vocabulary, transposed=False)
    yield "model.norm.weight", Place("norm", None, (config.width,), transposed=False)
    if not config.tied_head:
        yield HEAD, Place("head", None, vocabulary, transposed=True)
    tensors = block_tensors(config)
    shapes = {leaf: leaf_shape(config, leaf) for leaf in tensors}
    for layer in range(config.layers):
        for leaf, (name, transposed) in tensors.items():
            shape = shapes[leaf]
            yield f"model.layers.{layer}.{name}", Place(leaf, layer, shape[::-1] if transposed else shape, transposed)


def block_tensors(config: ModelConfig) -> dict[str, tuple[str, bool]]:
    """For every leaf of an architecture's blocks, its tensor's name within a layer and whether it is stored transposed.

    Args:
      config: the architecture.
    """
    tensors = {leaf: (f"{module}.weight", True) for leaf, module in PROJECTION_MODULES.items()}
    tensors |= {f"{BIAS}{leaf}": (f"{PROJECTION_MODULES[leaf]}.bias", False) for leaf in config.biases}
    norms = NORM_MODULES if config.qk_norm else {leaf: NORM_MODULES[leaf] for leaf in ("norm_attention", "norm_mlp")}
    return tensors | {leaf: (f"{module}.weight", False) for leaf, module in norms.items()}


def leaf_shape(config: ModelConfig, leaf: str) -> tuple[int, ...]:
    """Shape of one layer of a leaf in a `Block`.

    Args:
      config: the architecture.
      leaf: name of the leaf, as in `block_tensors`.
    """
    if leaf in PROJECTIONS:
        return config.projection_shape(leaf)
    if leaf.startswith(BIAS):
        return config.projection_shape(leaf.removeprefix(BIAS))[1:]
    return (config.head_size,) if leaf in ("norm_q", "norm_k") else (config.width,)


def leaf_of(blocks: Block, leaf: str) -> Any:
    """A leaf of a model's blocks.

    Args:
      blocks: the blocks.
      leaf: name of the leaf, as in `block_tensors`.
    """
    return blocks.bias[leaf.removeprefix(BIAS)] if leaf.startswith(BIAS) else getattr(blocks, leaf)


def block_of(config: ModelConfig, leaves: Mapping[str, Any]) -> Block:
    """The blocks made from their leaves.

    Args:
      config: the architecture.
      leaves: the leaves by the names of `block_tensors`.
    """
    plain = {leaf: value for leaf, value in leaves.items() if not leaf.startswith(BIAS)}
    return Block(**plain, bias={name: leaves[f"{BIAS}{name}"] for name in config.biases})


def full_name(name: str) -> str:
    """A tensor's name in a model with a head; in a model saved without its head, names have no `model.` prefix.

    Args:
      name: its name in the file.
    """
    bare = name.removeprefix("model.")
    return bare if bare == HEAD else f"model.{bare}"
