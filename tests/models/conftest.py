"""A small LLaMA whose every size differs, so that a swapped axis cannot pass, with weights large enough to matter."""

import os

import jax
import jax.numpy as jnp
import pytest

from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from devft_jax.models.base import Base, init_base
from devft_jax.models.lora import init_lora

CONFIG = ModelConfig(vocabulary=37, width=16, feed_forward=20, layers=3, heads=4, kv_heads=2, head_size=6)


def random_base(config: ModelConfig, seed: int = 0) -> Base:
    key = jax.random.key(seed)
    base = init_base(key, config)
    leaves, structure = jax.tree.flatten(base)
    keys = jax.random.split(key, len(leaves))
    noise = [0.3 * jax.random.normal(each, leaf.shape) for each, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.map(jnp.add, base, structure.unflatten(noise))


def random_adapter(
    config: ModelConfig, targets: tuple[str, ...] = PROJECTIONS, *, rank: int = 3, dropout: float = 0.0
) -> Adapter:
    key = jax.random.key(1)
    adapter = init_lora(key, config, rank=rank, alpha=2.0 * rank, targets=targets, dropout=dropout)
    lora = {
        name: factors.replace(b=0.3 * jax.random.normal(jax.random.fold_in(key, index), factors.b.shape))
        for index, (name, factors) in enumerate(adapter.lora.items())
    }
    return adapter.replace(lora=lora)


def interrupt_replacing(monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Let the next replacement of files be killed once it has moved `after` of them to their places."""
    replace, moved = os.replace, []

    def killed(source, target):
        if len(moved) == after:
            raise KeyboardInterrupt
        moved.append(target)
        replace(source, target)

    monkeypatch.setattr("devft_jax.files.writing.os.replace", killed)


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    return CONFIG


@pytest.fixture(scope="session")
def base(config: ModelConfig) -> Base:
    return random_base(config)


@pytest.fixture(scope="session")
def adapter(config: ModelConfig) -> Adapter:
    return random_adapter(config)


@pytest.fixture(scope="session")
def tokens(config: ModelConfig) -> jax.Array:
    return jax.random.randint(jax.random.key(2), (2, 7), 0, config.vocabulary)
