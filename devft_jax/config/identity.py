"""The identity of a run: the values that decide what is computed, which must be equal for a run to be resumed."""

import dataclasses
import hashlib
import json
from typing import Any

from devft_jax.config.files import to_plain
from devft_jax.config.run_config import RunConfig
from devft_jax.config.warm_starts import warm_start_digest
from devft_jax.data.sources import named_from_anywhere as data_from_anywhere
from devft_jax.evaluation.benchmarks import whole_choice
from devft_jax.files import checked_path, whole_path
from devft_jax.fleets.tiers import tiers_or_file
from devft_jax.models.huggingface.folder import named_from_anywhere as model_from_anywhere
from devft_jax.options import identity_fields


def anchored(config: RunConfig) -> RunConfig:
    """The configuration with absolute paths of all local files and folders, so that it is valid in every working folder, and
    with the digest of the adapter with which the run begins.

    Args:
      config: the run's configuration.

    Raises:
      InputError: there is no such adapter, or it has another digest than the configuration.
    """
    changes: dict[str, Any] = {}
    for name in ("data", "test_data", "probe_data"):
        value = getattr(config, name)
        if value is not None:
            named = data_from_anywhere(value) if isinstance(value, str) else tuple(map(data_from_anywhere, value))
            changes[name] = named
    if config.model != "bundled":
        changes["model"] = model_from_anywhere(config.model)
    if config.evaluate_tasks is not None:
        changes["evaluate_tasks"] = tuple(map(whole_choice, config.evaluate_tasks))
    if config.adapter is not None or config.init_from is not None:
        changes["adapter_digest"] = warm_start_digest(config)
    if config.fleet is not None:
        changes["fleet"] = tiers_or_file(config.fleet)
    for name in ("out", "cache_dir", "benchmark_files", "adapter", "init_from", "fleet_availability"):
        if getattr(config, name) is not None:
            changes[name] = str(whole_path(checked_path(getattr(config, name), name)))
    return dataclasses.replace(config, **changes)


def identity(config: RunConfig) -> dict[str, Any]:
    """The plain values that decide what is computed; `rounds` may grow on resume and is not among them.

    Args:
      config: the run's configuration.
    """
    plain = to_plain(anchored(config))
    return {name: plain[name] for name in identity_fields(config) if name != "rounds"}


def identity_hash(config: RunConfig) -> str:
    """Eight hexadecimal digits of a hash of the identity and the rounds, for default folder names.

    Args:
      config: the run's configuration.
    """
    text = json.dumps({**identity(config), "rounds": config.rounds}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
