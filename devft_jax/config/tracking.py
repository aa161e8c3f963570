"""Where a run's metrics are logged besides its own files."""

from dataclasses import dataclass

from devft_jax.options import execution

TRACKERS = ("csv", "tensorboard", "wandb")


@dataclass(frozen=True, kw_only=True)
class TrackingOptions:
    """Where a run's metrics are logged besides its own files."""

    track: tuple[str, ...] | None = execution(None, choices=TRACKERS, each_once=True)
    """Trackers that log every round's metrics: csv (metrics.csv in the run's folder), tensorboard (event files in its
    folder tensorboard/; extra tensorboard), wandb (Weights & Biases; extra wandb). Several at once: csv,tensorboard."""
