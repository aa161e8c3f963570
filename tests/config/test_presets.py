"""The presets are valid and have the paper's values."""

import pytest

from devft_jax.config.presets import PRESETS, preset
from devft_jax.config.validation import validate


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name):
    validate(preset(name))


def test_paper_presets_carry_the_papers_values():
    small, large = preset("paper-llama2-7b"), preset("paper-llama2-13b")
    assert small.capacities == (4, 8, 16, 32)
    assert small.learning_rate == (1e-6, 1e-5, 1e-4, 1e-4)
    assert (small.rounds, small.clients, small.clients_per_round) == (300, 20, 2)
    assert (small.local_steps, small.batch_size, small.max_length) == (10, 16, 512)
    assert (small.rank, small.alpha, small.dropout, small.targets) == (32, 64.0, 0.05, ("q", "v"))
    assert small.quantization == large.quantization == "nf4"
    assert (large.capacities, large.rounds, large.beta) == ((5, 10, 20, 40), 400, 0.15)
