"""The files of a run: its folder, metrics, records and checkpoints, and what clients keep between rounds."""

from devft_jax.storage.ownership import COMPARISON, EXPORT, EXPORT_FILE, JUDGED, PAGE_MARK, RUN, Kind, claim, claim_file
from devft_jax.storage.rows import Rows
from devft_jax.storage.run_folder import RunFolder

__all__ = [
    "COMPARISON",
    "EXPORT",
    "EXPORT_FILE",
    "JUDGED",
    "PAGE_MARK",
    "RUN",
    "Kind",
    "Rows",
    "RunFolder",
    "claim",
    "claim_file",
]
