"""Training a run: its parts, stages, rounds, callbacks and checkpoints."""
