"""What a run leaves on disk: its folder, its metrics and its checkpoints; and what clients keep between rounds."""

from devft_jax.storage.bank import map_rows, mapped_shapes, scatter_rows
from devft_jax.storage.run_folder import RunFolder

__all__ = ["RunFolder", "map_rows", "mapped_shapes", "scatter_rows"]
