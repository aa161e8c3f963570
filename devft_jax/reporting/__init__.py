"""What a run says while it works."""

from devft_jax.reporting.progress import Progress

__all__ = ["Progress"]
