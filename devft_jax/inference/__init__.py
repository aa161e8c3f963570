"""Loads trained models: a run's, an adapter's on its base, or any other, to read them or to generate answers."""
