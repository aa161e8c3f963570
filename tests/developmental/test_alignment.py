import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.developmental import LayerMap, fuse, fusion_matrix
from devft_jax.developmental.alignment import align_factors, procrustes

LAYERS, INPUTS, RANK, OUTPUTS = 6, 7, 3, 5


def factors(seed: int, layers: int = LAYERS):
    draw = np.random.default_rng(seed)
    a, b = draw.standard_normal((layers, INPUTS, RANK)), draw.standard_normal((layers, RANK, OUTPUTS))
    return jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)


def rotations(seed: int, layers: int = LAYERS):
    drawn = np.random.default_rng(seed).standard_normal((layers, RANK, RANK))
    return jnp.asarray(np.linalg.qr(drawn)[0], jnp.float32)


def grouped(assign, **options) -> LayerMap:
    assign = jnp.asarray(assign)
    return LayerMap(fusion_matrix(assign, **options), assign)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 1), min_size=LAYERS - 2, max_size=LAYERS - 2))
def test_products_stay_and_rotations_are_orthogonal(seed, rest):
    a, b = factors(seed)
    stage = grouped([0, 1, *rest])
    turned_a, turned_b = align_factors(stage, a, b)
    np.testing.assert_allclose(turned_a @ turned_b, a @ b, atol=2e-5)
    rotation = procrustes(a, b, a[::-1], b[::-1])
    np.testing.assert_allclose(rotation @ rotation.mT, jnp.broadcast_to(jnp.eye(RANK), rotation.shape), atol=1e-5)


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_rotated_copies_of_one_layer_fuse_exactly(seed):
    one_a, one_b = factors(seed, 1)
    turn = rotations(seed + 1)
    a, b = one_a @ turn, turn.mT @ one_b
    stage = grouped([0] * LAYERS, method="mean")
    fused_a, fused_b = fuse(stage, align_factors(stage, a, b))
    np.testing.assert_allclose(fused_a @ fused_b, one_a @ one_b, atol=5e-5)
    plain_a, plain_b = fuse(stage, (a, b))
    assert np.abs(plain_a @ plain_b - one_a @ one_b).max() > 1e-2


def test_no_other_rotation_comes_closer_to_the_anchor():
    a, b = factors(3)

    def distance(turn):
        return jnp.sum((a @ turn - a[:1]) ** 2, (1, 2)) + jnp.sum((turn.mT @ b - b[:1]) ** 2, (1, 2))

    best = distance(procrustes(a, b, jnp.broadcast_to(a[:1], a.shape), jnp.broadcast_to(b[:1], b.shape)))
    for seed in range(20):
        assert (best <= distance(rotations(seed)) + 1e-4).all()


@pytest.mark.parametrize(
    "stage",
    [
        LayerMap.identity(LAYERS),
        grouped([0, 0, 1, 1, 1, 1], method="anchor"),
        LayerMap(jnp.eye(2, LAYERS), jnp.array([0, 1, -1, -1, -1, -1])),
    ],
)
def test_maps_that_only_pick_change_nothing(stage):
    a, b = factors(0)
    for align in (align_factors, jax.jit(align_factors)):
        turned = align(stage, a, b)
        assert (turned[0] == a).all()
        assert (turned[1] == b).all()


def test_traced_it_does_the_same_and_leaves_anchors_and_absent_layers():
    a, b = factors(1)
    stage = grouped([0, 1, 0, -1, 1, 0])
    eager, traced = align_factors(stage, a, b), jax.jit(align_factors)(stage, a, b)
    for left, right, before in zip(eager, traced, (a, b), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)
        changed = np.abs(left - before).max((1, 2)) > 1e-3
        assert changed.tolist() == [False, False, True, False, True, True]
        assert (left[jnp.array([0, 1, 3])] == before[jnp.array([0, 1, 3])]).all()
