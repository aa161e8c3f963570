import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from devft_jax.developmental import LayerGrams, layer_gram, layer_similarity, similarity_from_gram, streaming
from devft_jax.developmental.streaming import blocks as blocks_module
from devft_jax.developmental.streaming import device
from tests.developmental.weights import block_quantised, layer_quantised, on_device, rows, stack

LAYERS = 7


def cosines(tree) -> np.ndarray:
    vectors = rows(tree)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors @ vectors.T


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("blocks", ["one block", "small blocks"])
@settings(max_examples=3)
@given(seed=st.integers(0, 10**6))
def test_both_routes_equal_the_dense_cosine(dtype, blocks, seed):
    with pytest.MonkeyPatch.context() as patch:
        if blocks == "small blocks":
            patch.setattr(blocks_module, "SMALLEST_BLOCK", 1)
            patch.setattr(blocks_module, "LARGEST_BLOCK", 64)
            device.gram.clear_cache()
        tree = stack(seed, LAYERS, dtype)
        np.testing.assert_allclose(layer_similarity(tree), cosines(tree), atol=1e-6)
        np.testing.assert_allclose(layer_similarity(on_device(tree)), cosines(tree), atol=1e-6)
    device.gram.clear_cache()


def test_inner_products_are_exactly_symmetric_float32():
    for tree in (stack(0, LAYERS, "bfloat16"), on_device(stack(0, LAYERS, "bfloat16"))):
        gram = layer_gram(tree)
        assert gram.dtype == jnp.float32
        np.testing.assert_array_equal(gram, gram.T)


def test_a_long_sum_keeps_its_digits(small_blocks):
    layers = np.ones((2, 2**17), np.float32)
    layers[1] = 0.1
    for leaf in (layers, jnp.asarray(layers)):
        gram = np.asarray(layer_gram(leaf))
        np.testing.assert_allclose(gram[0], [2**17, 0.1 * 2**17], rtol=1e-4)


def test_a_layer_of_zeros_is_similar_to_nothing_and_gradients_stay_finite():
    tree = on_device(stack(0, LAYERS))
    tree = jax.tree.map(lambda leaf: leaf.at[2].set(0), tree)
    similarity = layer_similarity(tree)
    np.testing.assert_array_equal(similarity[2], np.zeros(LAYERS))
    np.testing.assert_array_equal(similarity[:, 2], np.zeros(LAYERS))
    gradient = jax.grad(lambda t: layer_similarity(t).sum())(tree)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert not np.isnan(layer_similarity({"w": jnp.zeros((3, 4))})).any()


@settings(max_examples=5)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(LAYERS)))
def test_reordering_layers_reorders_and_rescaling_them_changes_nothing(seed, order):
    tree = stack(seed, LAYERS)
    order = np.asarray(order)
    base = np.asarray(layer_similarity(tree))
    moved = layer_similarity({name: leaf[order] for name, leaf in tree.items()})
    np.testing.assert_allclose(moved, base[np.ix_(order, order)], atol=1e-6)
    factors = np.random.default_rng(seed).uniform(0.1, 10, LAYERS).astype(np.float32)
    scaled = {name: leaf * factors.reshape(-1, *(1,) * (leaf.ndim - 1)) for name, leaf in tree.items()}
    np.testing.assert_allclose(layer_similarity(scaled), base, atol=1e-5)


def test_structure_and_leaf_order_do_not_matter():
    tree = stack(0, LAYERS)
    nested = ([tree["gain"], {"x": tree["odd"]}], (tree["large"], None, tree["flat"]))
    np.testing.assert_allclose(layer_similarity(nested), layer_similarity(tree), atol=1e-6)


def test_select_narrows_what_is_compared_by_path():
    tree = stack(0, LAYERS)
    chosen = layer_similarity(tree, select=lambda path: path in ("['odd']", "['gain']"))
    wanted = cosines({name: tree[name] for name in ("odd", "gain")})
    np.testing.assert_allclose(chosen, wanted, atol=1e-6)
    with pytest.raises(ValueError, match=r"accepts none of the tree's 4 leaves.*\['flat'\]"):
        layer_similarity(tree, select=lambda path: False)


def test_lora_belongs_to_its_layer():
    base, lora = stack(0, LAYERS), stack(1, LAYERS)
    np.testing.assert_allclose(layer_similarity((base, lora)), cosines((base, lora)), atol=1e-6)


def test_quantised_and_mixed_trees_are_compared_at_their_dequantised_values():
    blocks, whole, plain = block_quantised(0, LAYERS), layer_quantised(1, LAYERS), stack(2, LAYERS)
    dense = (blocks.dequantize(jnp.float32), whole.dequantize(jnp.float32), plain)
    np.testing.assert_allclose(layer_similarity((blocks, whole, plain)), cosines(dense), atol=1e-6)


def test_grams_read_every_leaf_once_and_serve_every_selection(monkeypatch):
    tree = stack(0, LAYERS)
    reads = []
    gram = streaming.gram
    monkeypatch.setattr(streaming, "gram", lambda leaf: reads.append(leaf) or gram(leaf))
    grams = LayerGrams(tree)
    assert grams.num_layers == LAYERS
    assert not reads
    np.testing.assert_allclose(layer_gram(grams), rows(tree) @ rows(tree).T, rtol=1e-4, atol=1e-4)
    odd = layer_similarity(grams, select=lambda path: path == "['odd']")
    np.testing.assert_allclose(odd, cosines({"odd": tree["odd"]}), atol=1e-6)
    assert set(grams.per_leaf) == {"['large']", "['odd']", "['flat']", "['gain']"}
    assert len(reads) == len(tree)


def test_gradients_agree_with_finite_differences(small_blocks):
    tree = on_device({name: leaf for name, leaf in stack(0, 3).items() if name != "large"})
    check_grads(layer_similarity, (tree,), order=1, modes=("fwd", "rev"), eps=1e-2, atol=1e-3, rtol=1e-2)


def test_traced_trees_give_the_same_numbers():
    tree = on_device(stack(0, LAYERS, "bfloat16"))
    np.testing.assert_allclose(jax.jit(layer_similarity)(tree), layer_similarity(tree), atol=1e-6)


def test_similarity_of_numpy_inner_products():
    gram = np.array([[4.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    expected = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0]], np.float32)
    np.testing.assert_allclose(similarity_from_gram(gram), expected, atol=1e-6)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowers_for_accelerators_at_13b_size(platform):
    leaf = jax.ShapeDtypeStruct((40, 5120, 13824), jnp.bfloat16)
    assert leaf.size > 2**31
    exported = jax.export.export(jax.jit(layer_similarity), platforms=[platform])({"up": leaf})
    assert exported.platforms == (platform,)
    assert exported.out_avals[0].shape == (40, 40)
