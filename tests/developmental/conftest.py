"""Weights for the tests of the layer algebra."""

import pytest

from devft_jax.developmental import streaming

_COMPILED = (
    streaming._device_gram,
    streaming._device_combine,
    streaming._device_shift,
    streaming._device_replace,
)


@pytest.fixture
def small_blocks(monkeypatch):
    """Cuts even tiny leaves into several blocks, so that loops and their remainders run."""
    monkeypatch.setattr(streaming, "_SMALLEST_BLOCK", 1)
    monkeypatch.setattr(streaming, "_LARGEST_BLOCK", 64)
    for function in _COMPILED:
        function.clear_cache()
    yield
    for function in _COMPILED:
        function.clear_cache()
