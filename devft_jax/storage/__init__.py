"""What a run leaves on disk: its folder, its metrics and its checkpoints; and what clients keep between rounds."""

from devft_jax.storage.bank import Rows
from devft_jax.storage.run_folder import RunFolder

__all__ = ["Rows", "RunFolder"]
