from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.models.influence import layer_cosines, layer_outputs
from devft_jax.models.llama import hidden_states
from tests.models.conftest import CONFIG, random_base


@pytest.fixture(scope="module")
def parts():
    tokens = jnp.asarray(np.random.default_rng(0).integers(1, CONFIG.vocabulary, (2, 6)), jnp.int32)
    return random_base(CONFIG), tokens, jnp.arange(6) < jnp.array([[4], [6]])


def test_a_layer_that_adds_nothing_has_cosine_one_and_padding_does_not_count(parts):
    base, tokens, real = parts
    silent = base.replace(blocks=base.blocks.replace(o=base.blocks.o.at[1].set(0), down=base.blocks.down.at[1].set(0)))
    cosines = layer_cosines(CONFIG, silent, tokens, real)
    np.testing.assert_allclose(cosines[1], 10, rtol=1e-6)
    assert (cosines[jnp.array([0, 2])] < 9.9).all()
    poisoned = jnp.where(real, tokens, 5)
    np.testing.assert_allclose(layer_cosines(CONFIG, silent, poisoned, real), cosines, rtol=1e-5)


def test_cosines_are_those_of_the_hidden_states(parts):
    base, tokens, real = parts
    plain = base.replace(norm=jnp.ones_like(base.norm))
    # The final norm scales every token, which no cosine sees.
    states = [plain.embed[tokens]]
    for depth in range(1, CONFIG.layers + 1):
        cut = plain.replace(blocks=jax.tree.map(lambda leaf, depth=depth: leaf[:depth], plain.blocks))
        states.append(hidden_states(CONFIG, cut, None, tokens))
    unit = [state / np.linalg.norm(state, axis=-1, keepdims=True) for state in states]
    expected = [float(((a * b).sum(-1) * real).sum()) for a, b in pairwise(unit)]
    np.testing.assert_allclose(layer_cosines(CONFIG, base, tokens, real), expected, rtol=1e-4)


def test_outputs_are_the_hidden_states_of_the_layers(parts):
    base, tokens, _ = parts
    plain = base.replace(norm=jnp.ones_like(base.norm))
    places = jnp.array([7, 0, 3])
    outputs = layer_outputs(CONFIG, base, tokens, places)
    assert outputs.shape == (CONFIG.layers, 3, CONFIG.width)
    for depth in range(1, CONFIG.layers + 1):
        cut = plain.replace(blocks=jax.tree.map(lambda leaf, depth=depth: leaf[:depth], plain.blocks))
        expected = hidden_states(CONFIG, cut, None, tokens).reshape(-1, CONFIG.width)[places]
        # The final norm makes the mean square one.
        normed = outputs[depth - 1] / jnp.sqrt(jnp.mean(outputs[depth - 1] ** 2, axis=-1, keepdims=True))
        np.testing.assert_allclose(normed, expected, atol=1e-3)
