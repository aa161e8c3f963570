"""Developmental Federated Tuning of large language models, simulated in JAX.

`train(config)` runs what `devft run` runs; `RunConfig` describes it. The subpackages can be used alone:
`devft_jax.developmental` (grouping, fusion, growth) needs only jax and numpy.
"""

from typing import TYPE_CHECKING

from devft_jax.lazy import lazy_names

if TYPE_CHECKING:
    from devft_jax.config.presets import preset
    from devft_jax.config.run_config import RunConfig
    from devft_jax.training.run import Run, train

__all__ = ["Run", "RunConfig", "__version__", "preset", "train"]

__version__ = "0.1.0"

__getattr__, __dir__ = lazy_names(
    __name__,
    __all__,
    {
        "training.run": ("Run", "train"),
        "config.run_config": ("RunConfig",),
        "config.presets": ("preset",),
    },
)
