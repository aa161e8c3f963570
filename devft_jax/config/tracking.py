"""Where a run's metrics are logged besides its own files."""

from dataclasses import dataclass

from devft_jax.errors import InputError
from devft_jax.options import execution

TRACKERS = ("csv", "tensorboard", "wandb")


@dataclass(frozen=True, kw_only=True)
class TrackingOptions:
    """Where a run's metrics are logged besides its own files."""

    track: tuple[str, ...] | None = execution(None, choices=TRACKERS)
    """Trackers that log every round's metrics: csv (metrics.csv in the run's folder), tensorboard (event files in its
    folder tensorboard/; extra tensorboard), wandb (Weights & Biases; extra wandb). Several at once: csv,tensorboard."""


def validate_tracking(options: TrackingOptions) -> None:
    """Raise `InputError` for a tracker that is given twice.

    Args:
      options: with known names of trackers.
    """
    for name in options.track or ():
        if (options.track or ()).count(name) > 1:
            raise InputError(f"track names '{name}' twice; name it once.")
