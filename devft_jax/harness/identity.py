"""A name for a model by its content: two that answer alike share it, any other weight gives another."""

import dataclasses
import hashlib
import json

import jax
import numpy as np

from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.llama import Compute


def model_identity(config: ModelConfig, base: Base, adapter: Adapter | None, compute: Compute) -> str:
    """The name under which a model's finished requests are kept.

    Args:
      config: the architecture.
      base: its weights, all of which are read.
      adapter: low-rank updates of them, or None.
      compute: of which the dtype counts.

    Returns:
      32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([dataclasses.asdict(config), compute.dtype], sort_keys=True, default=str).encode())
    for path, leaf in jax.tree_util.tree_flatten_with_path((base, adapter))[0]:
        array = np.asarray(jax.device_get(leaf))
        digest.update(f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
