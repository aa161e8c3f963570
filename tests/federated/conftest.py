"""Settings of the room."""

import jax
import pytest


@pytest.fixture
def full_optimisation():
    """Compile as in a real run."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
