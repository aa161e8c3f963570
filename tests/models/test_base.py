"""The frozen base."""

from devft_jax.models.base import parameter_count


def test_parameter_count(config, base):
    assert parameter_count(base) == 2 * 37 * 16 + 16 + config.layers * (2 * 16 + 2 * 16 * 24 + 2 * 16 * 12 + 3 * 16 * 20)
