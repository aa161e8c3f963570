"""What a run says while it works, and the pictures it leaves."""

from devft_jax.reporting.progress import Progress
from devft_jax.reporting.split import split_chart

__all__ = ["Progress", "split_chart"]
