"""What a run leaves on disk: its folder, its metrics and its checkpoints."""

from devft_jax.storage.run_folder import RunFolder

__all__ = ["RunFolder"]
