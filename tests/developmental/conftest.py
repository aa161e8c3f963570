"""Weights for the tests of the layer algebra."""

import pytest

from devft_jax.developmental.streaming import blocks, device

_COMPILED = (
    device.gram,
    device.combine,
    device.shift,
    device.replace,
)


@pytest.fixture
def small_blocks(monkeypatch):
    """Cuts even tiny leaves into several blocks, so that loops and their remainders run."""
    monkeypatch.setattr(blocks, "SMALLEST_BLOCK", 1)
    monkeypatch.setattr(blocks, "LARGEST_BLOCK", 64)
    for function in _COMPILED:
        function.clear_cache()
    yield
    for function in _COMPILED:
        function.clear_cache()
