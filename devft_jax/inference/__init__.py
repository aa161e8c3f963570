"""Models that exist, opened to be read or asked: a run's, an adapter's on its base, a model's."""
