"""Progress lines of a run, and the charts and pages written from its records."""

from devft_jax.reporting.progress import Progress
from devft_jax.reporting.split import split_chart

__all__ = ["Progress", "split_chart"]
