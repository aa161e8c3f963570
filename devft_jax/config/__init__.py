"""The configuration of a run: its options, presets, files and texts."""
