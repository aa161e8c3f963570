"""The files of a run: its folder, metrics, records and checkpoints, and what clients keep between rounds."""
