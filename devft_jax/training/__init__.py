"""A run: its model, its stages, its rounds, its checkpoints."""
