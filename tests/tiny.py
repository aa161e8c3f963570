"""A tiny random LLaMA with adapters and token examples: what the tests of the engine train and score."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from devft_jax.data import Examples
from devft_jax.models.adapter import Adapter, LoraFactors
from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from devft_jax.models.base import Base, Block
from devft_jax.models.options import LoraOptions

# Grouped queries make k and v [16, 8]; no projection but q and o is square.
CONFIG = ModelConfig(vocabulary=40, width=16, feed_forward=24, layers=4, heads=4, kv_heads=2, head_size=4, max_length=16)
# No random example contains it, so a test may poison its embedding.
RESERVED_TOKEN = CONFIG.vocabulary - 1


def random_base(config: ModelConfig = CONFIG, seed: int = 0) -> Base:
    """Weights so large that attention, gates and logits are far from uniform."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 1.0):
        return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)

    def norm(*shape: int):
        return jnp.asarray(1 + 0.1 * rng.normal(size=shape), jnp.float32)

    projections = {}
    for name in PROJECTIONS:
        fan_in, fan_out = config.projection_shape(name)
        projections[name] = normal(config.layers, fan_in, fan_out, scale=fan_in**-0.5)
    blocks = Block(
        **projections,
        norm_attention=norm(config.layers, config.width),
        norm_mlp=norm(config.layers, config.width),
    )
    return Base(
        embed=normal(config.vocabulary, config.width),
        blocks=blocks,
        norm=norm(config.width),
        head=normal(config.width, config.vocabulary, scale=2 * config.width**-0.5),
    )


def random_adapter(options: LoraOptions, config: ModelConfig = CONFIG, seed: int = 1) -> Adapter:
    """An adapter in the middle of training: neither factor is zero."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int):
        return jnp.asarray(rng.normal(size=shape) / shape[-2] ** 0.5, jnp.float32)

    lora = {}
    for name in options.targets:
        fan_in, fan_out = config.projection_shape(name)
        lora[name] = LoraFactors(
            a=normal(config.layers, fan_in, options.rank),
            b=normal(config.layers, options.rank, fan_out),
        )
    return Adapter(lora=lora, scale=jnp.float32(options.alpha / options.rank), dropout=options.dropout)


def examples_from(rows: list[list[int]], prompt_lengths: list[int]) -> Examples:
    """Examples of given tokens, with the answer after each prompt."""
    count = len(rows)
    lengths = np.array([len(row) for row in rows])
    return Examples(
        tokens=np.concatenate(rows).astype(np.int32),
        is_answer=np.concatenate([np.arange(n) >= prompt for n, prompt in zip(lengths, prompt_lengths, strict=True)]),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        prompt_lengths=np.array(prompt_lengths, np.int32),
        record_index=np.arange(count),
        answers=np.zeros(count, np.int32),
        category_codes=np.full(count, -1, np.int32),
        category_names=(),
        truncated=np.zeros(count, bool),
    )


def random_examples(count: int, *, seed: int, lengths: Sequence[int] = (5, 8)) -> Examples:
    """Examples of random tokens, each of one of `lengths`, with at least one of them in the completion."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(1, RESERVED_TOKEN, rng.choice(lengths)).tolist() for _ in range(count)]
    return examples_from(rows, [int(rng.integers(1, len(row))) for row in rows])
