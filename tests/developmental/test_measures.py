"""Measures of similarity against their formulas, and what must not change them."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.developmental import (
    LayerGrams,
    influence_similarity,
    layer_similarity,
    linear_cka,
    token_cosines,
    weight_similarity,
)
from devft_jax.developmental.options import OF_WEIGHTS, PROJECTIONS

SEEDS = st.integers(0, 10**6)


def outputs(seed, layers=3, tokens=12, width=5):
    return np.random.default_rng(seed).standard_normal((layers, tokens, width)).astype(np.float32)


@settings(max_examples=20)
@given(seed=SEEDS)
def test_linear_cka_is_its_formula_over_features(seed):
    states = outputs(seed)
    centred = states - states.mean(axis=1, keepdims=True)
    cross = np.array([[np.square(a.T @ b).sum() for b in centred] for a in centred])
    own = np.sqrt(np.diag(cross))
    np.testing.assert_allclose(linear_cka(states), cross / own[:, None] / own[None, :], rtol=1e-4)


@settings(max_examples=20)
@given(seed=SEEDS, scale=st.floats(1e-3, 1e3), shift=st.floats(-3, 3))
def test_linear_cka_is_one_for_equal_outputs_and_blind_to_rotation_scale_and_shift(seed, scale, shift):
    one, other = outputs(seed, layers=2)
    rotation = np.linalg.qr(np.random.default_rng(seed + 1).standard_normal((5, 5)))[0]
    changed = (one @ rotation * scale + shift).astype(np.float32)
    similarity = np.asarray(linear_cka(np.stack([one, changed, other])))
    np.testing.assert_allclose(similarity[:2, :2], 1.0, atol=2e-4)
    np.testing.assert_allclose(similarity[0, 2], similarity[1, 2], atol=2e-4)
    assert (similarity <= 1 + 1e-5).all()
    assert (similarity >= -1e-6).all()


def test_linear_cka_of_large_and_of_constant_outputs_is_finite():
    large = np.stack([outputs(0, layers=1)[0] * 1e12, outputs(0, layers=1)[0], np.ones((12, 5), np.float32)])
    similarity = np.asarray(linear_cka(large))
    assert np.isfinite(similarity).all()
    np.testing.assert_allclose(similarity[0, 1], 1.0, atol=1e-4)
    assert similarity[2].tolist() == [0, 0, 0]


@settings(max_examples=20)
@given(seed=SEEDS)
def test_token_cosines_are_means_over_tokens(seed):
    states = outputs(seed)
    unit = states / np.linalg.norm(states, axis=-1, keepdims=True)
    expected = np.array([[(a * b).sum(axis=-1).mean() for b in unit] for a in unit])
    np.testing.assert_allclose(token_cosines(states), expected, atol=1e-5)
    np.testing.assert_allclose(token_cosines(states * 7), expected, atol=1e-5)


@settings(max_examples=20)
@given(influence=st.lists(st.floats(0, 2, width=32), min_size=3, max_size=6))
def test_influence_between_layers_adds_up(influence):
    similarity = np.asarray(influence_similarity(jnp.asarray(influence, jnp.float32)))
    np.testing.assert_allclose(np.diag(similarity), 1.0)
    np.testing.assert_allclose(similarity, similarity.T)
    np.testing.assert_allclose(np.diag(similarity, 1), np.exp(-np.asarray(influence[1:])), rtol=1e-4)
    np.testing.assert_allclose(similarity[0, 2], similarity[0, 1] * similarity[1, 2], rtol=1e-4)


@pytest.fixture(scope="module")
def grams():
    draw = np.random.default_rng(0)
    shapes = {**dict.fromkeys(PROJECTIONS, (3, 4)), "norm_mlp": (4,), "norm_attention": (4,)}
    tree = {name: draw.standard_normal((5, *shape)).astype(np.float32) for name, shape in shapes.items()}
    return LayerGrams(Leaves(tree))


class Leaves:
    """Leaves with the paths of a model's: `.q`, `.norm_mlp`."""

    def __init__(self, leaves):
        self.leaves = leaves


def _register():
    import jax

    def flatten(tree):
        return [(jax.tree_util.GetAttrKey(name), leaf) for name, leaf in tree.leaves.items()], tuple(tree.leaves)

    jax.tree_util.register_pytree_with_keys(
        Leaves, flatten, lambda names, leaves: Leaves(dict(zip(names, leaves, strict=True)))
    )


_register()


def of(grams, *names):
    return layer_similarity({name: grams.tree.leaves[name] for name in names})


def test_measures_of_weights_compare_what_they_name(grams):
    norms = ("norm_mlp", "norm_attention")
    np.testing.assert_allclose(weight_similarity(grams, "weights"), of(grams, *PROJECTIONS, *norms), atol=1e-6)
    np.testing.assert_allclose(weight_similarity(grams, "without_norms"), of(grams, *PROJECTIONS), atol=1e-6)
    np.testing.assert_allclose(weight_similarity(grams, "norms"), of(grams, *norms), atol=1e-6)
    singles = np.stack([of(grams, name) for name in PROJECTIONS])
    np.testing.assert_allclose(weight_similarity(grams, "projections"), singles.mean(axis=0), atol=1e-6)
    for index, name in enumerate(PROJECTIONS):
        np.testing.assert_allclose(weight_similarity(grams, name), singles[index], atol=1e-6)


def test_a_tree_without_the_leaves_that_are_compared_is_refused():
    plain = LayerGrams({"weight": jnp.ones((3, 2))})
    assert weight_similarity(plain, "weights").shape == (3, 3)
    for name in set(OF_WEIGHTS) - {"weights", "without_norms"}:
        with pytest.raises(ValueError, match="select accepts none"):
            weight_similarity(plain, name)
