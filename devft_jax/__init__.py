"""Developmental Federated Tuning of large language models, simulated in JAX.

`train(config)` runs what `devft run` runs; `RunConfig` describes it. The subpackages can be used alone:
`devft_jax.developmental` (grouping, fusion, growth) needs only jax and numpy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from devft_jax.config.presets import preset
    from devft_jax.config.run_config import RunConfig
    from devft_jax.training.run import Run, train

__all__ = ["Run", "RunConfig", "__version__", "preset", "train"]

__version__ = "0.1.0"

_HOMES = {
    "Run": "devft_jax.training.run",
    "train": "devft_jax.training.run",
    "RunConfig": "devft_jax.config.run_config",
    "preset": "devft_jax.config.presets",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that one subpackage can be imported without loading the others."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'devft_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    """The public names, whether they have been imported or not."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
