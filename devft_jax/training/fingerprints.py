"""Fingerprints of arrays, by which a resumed run checks that its data, its public text and its base have not changed."""

import json
from typing import Any

import jax
import numpy as np

from devft_jax.config.run_config import RunConfig
from devft_jax.data import Examples, FederatedData
from devft_jax.models.base import Base
from devft_jax.models.quantization import QTensor
from devft_jax.storage.fingerprint import fingerprint


def data_fingerprint(data: FederatedData) -> str:
    """A fingerprint of the tokenised training and held-out data and their split."""
    parts = [part for part in (data.train, data.test) if part is not None]
    # A part that was held out shares its tokens with the training part.
    tokens = {id(array): array for part in parts for array in (part.tokens, part.is_answer)}
    arrays = [*tokens.values(), *(array for part in parts for array in (part.starts, part.lengths))]
    # A few long arrays: there may be a hundred thousand clients.
    ids = np.array([client.id for client in data.clients], np.uint32)
    sizes = np.array([len(client.indices) for client in data.clients])
    indices = np.concatenate([client.indices for client in data.clients])
    names = json.dumps([client.name for client in data.clients])
    return fingerprint(*arrays, names, ids, sizes, indices)


def text_fingerprint(config: RunConfig, examples: Examples | None) -> str | None:
    """A fingerprint of tokenised public text; None unless a resumed run reads it again, to distil layers or measure gains.

    Args:
      config: the run's configuration.
      examples: the text.
    """
    if examples is None or not (config.distil_steps or config.stage_end == "gain"):
        return None
    return fingerprint(examples.tokens, examples.starts, examples.lengths)


def _sample_of(leaf: Any) -> Any:
    """Values spread over a leaf: enough to distinguish one base from another without reading all of it."""
    flat = leaf.reshape(leaf.shape[0] if leaf.ndim > 1 else 1, -1)
    rows = np.linspace(0, flat.shape[0] - 1, min(16, flat.shape[0])).astype(int)
    columns = np.linspace(0, flat.shape[1] - 1, min(256, flat.shape[1])).astype(int)
    return flat[rows[:, None], columns]


_sample_on_device = jax.jit(_sample_of)


def base_fingerprint(base: Base, dtype: str | None = None) -> str:
    """A fingerprint of a base model from a sample of every leaf; floats are cast to `dtype`, packed weights are read as
    stored."""

    def sampled(leaf: Any) -> list[np.ndarray]:
        parts = jax.tree.leaves(leaf)
        # What is in host memory is not moved.
        samples = [
            _sample_of(part) if isinstance(part, np.ndarray) else np.asarray(_sample_on_device(part)) for part in parts
        ]
        return [sample if dtype is None or isinstance(leaf, QTensor) else sample.astype(dtype) for sample in samples]

    leaves = jax.tree.leaves(base, is_leaf=lambda leaf: isinstance(leaf, QTensor))
    return fingerprint(*(sample for leaf in leaves for sample in sampled(leaf)))
