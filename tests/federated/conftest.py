"""Settings of the room: most of its time is compilation, so LLVM's slow passes are left out."""

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def quick_compilation():
    """Compile for speed of compilation, which halves the room's time; XLA's own optimised program is the same."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def full_optimisation(quick_compilation):
    """Compile as in a real run."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
