import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.developmental import anchors, fusion_matrix, norm_gains

METHODS = ("dblf", "sum", "r_one", "mean", "anchor")
KEY = jax.random.key(0)
LAYERS = 8


@st.composite
def assignments(draw, absent: bool = False) -> np.ndarray:
    """Group ids of 8 layers, 0..G-1 in order of first layer; some layers absent if asked for."""
    ids: list[int] = []
    for _ in range(LAYERS):
        ids.append(draw(st.integers(0, max(ids, default=-1) + 1)))
    firsts = {ids.index(group) for group in ids}
    drop = draw(st.sets(st.integers(0, LAYERS - 1))) - firsts if absent else set()
    return np.asarray([-1 if layer in drop else group for layer, group in enumerate(ids)], np.int32)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25)
@given(assign=assignments(absent=True))
def test_coefficients_stay_within_the_group(method, assign):
    matrix = np.asarray(fusion_matrix(assign, method=method, key=KEY))
    assert matrix.dtype == np.float32
    assert matrix.shape == (assign.max() + 1, len(assign))
    outside = assign[None, :] != np.arange(assign.max() + 1)[:, None]
    assert (matrix[outside] == 0).all()


@settings(max_examples=50)
@given(assign=assignments(), beta=st.floats(-2, 2, width=32))
def test_dblf_is_equation_5(assign, beta):
    matrix = np.asarray(fusion_matrix(assign, beta=beta))
    layers = np.random.default_rng(0).standard_normal((len(assign), 5))
    for group in range(assign.max() + 1):
        members = np.flatnonzero(assign == group)
        anchor = layers[members[0]]
        expected = anchor + beta * sum(layers[member] - anchor for member in members)
        np.testing.assert_allclose(matrix[group] @ layers, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)


def test_equation_5_by_hand_with_a_negative_anchor_coefficient():
    twelve = fusion_matrix(np.zeros(12, np.int32), beta=0.1)
    np.testing.assert_allclose(twelve, [[-0.1] + [0.1] * 11], atol=1e-6)
    eleven = fusion_matrix(np.zeros(11, np.int32), beta=0.1)
    np.testing.assert_allclose(eleven, [[0.0] + [0.1] * 10], atol=1e-6)
    eight = fusion_matrix(np.zeros(8, np.int32), beta=0.15)
    np.testing.assert_allclose(eight, [[-0.05] + [0.15] * 7], atol=1e-6)
    mixed = fusion_matrix(np.array([0, 1, 0, 1, 1, 2]), beta=0.1)
    expected = [[0.9, 0, 0.1, 0, 0, 0], [0, 0.8, 0, 0.1, 0.1, 0], [0, 0, 0, 0, 0, 1]]
    np.testing.assert_allclose(mixed, expected, atol=1e-6)


def test_auto_beta_is_a_tenth_until_the_mean_is_smaller():
    assign = np.array([0] * 4 + [1] * 16)
    matrix = np.asarray(fusion_matrix(assign, beta="auto"))
    np.testing.assert_allclose(matrix[0, :4], [0.7, 0.1, 0.1, 0.1], atol=1e-6)
    np.testing.assert_allclose(matrix[1, 4:], np.full(16, 1 / 16), atol=1e-6)


@settings(max_examples=25)
@given(assign=assignments())
def test_the_other_methods_against_their_definitions(assign):
    groups = range(assign.max() + 1)
    members = [np.flatnonzero(assign == group) for group in groups]
    total, mean = fusion_matrix(assign, method="sum"), fusion_matrix(assign, method="mean")
    anchor, beta_zero = fusion_matrix(assign, method="anchor"), fusion_matrix(assign, beta=0.0)
    drawn = np.asarray(fusion_matrix(assign, method="r_one", key=KEY))
    np.testing.assert_array_equal(anchor, beta_zero)
    for group, member in zip(groups, members, strict=True):
        np.testing.assert_array_equal(np.flatnonzero(total[group]), member)
        assert set(np.asarray(total[group])[member].tolist()) == {1.0}
        np.testing.assert_allclose(np.asarray(mean[group])[member], 1 / len(member), rtol=1e-6)
        assert np.flatnonzero(anchor[group]).tolist() == [member[0]]
        assert np.flatnonzero(drawn[group])[0] in member
        assert sorted(drawn[group].tolist()) == [0.0] * (LAYERS - 1) + [1.0]


def test_one_random_member_is_drawn_evenly_and_by_the_key_alone():
    assign = np.array([0, 1, 0, 0, 1])
    drawn = [np.asarray(fusion_matrix(assign, method="r_one", key=jax.random.key(s))) for s in range(300)]
    np.testing.assert_allclose(np.mean(drawn, axis=0)[0, [0, 2, 3]], 1 / 3, atol=0.1)
    np.testing.assert_array_equal(drawn[5], fusion_matrix(assign, method="r_one", key=jax.random.key(5)))


def test_absent_layers_have_no_part():
    matrix = fusion_matrix(np.array([-1, 0, 0, -1, 1]), num_groups=2)
    np.testing.assert_allclose(matrix, [[0, 0.9, 0.1, 0, 0], [0, 0, 0, 0, 1]], atol=1e-6)


def test_singletons_are_the_identity_whatever_the_method():
    for method in METHODS:
        matrix = fusion_matrix(np.arange(5), method=method, beta=0.37, key=KEY)
        np.testing.assert_array_equal(matrix, np.eye(5))


def test_anchors_are_first_layers():
    assert anchors(np.array([-1, 1, 0, 1, 0, 2]), 3).tolist() == [2, 1, 5]


def test_coefficients_can_be_traced_and_beta_differentiated():
    assign = jnp.array([0, 0, 1, 0])
    traced = jax.jit(lambda a: fusion_matrix(a, num_groups=2))(assign)
    np.testing.assert_allclose(traced, fusion_matrix(assign), atol=1e-7)
    slope = jax.jacobian(lambda beta: fusion_matrix(assign, num_groups=2, beta=beta))(0.1)
    np.testing.assert_allclose(slope, [[-2, 1, 0, 1], [0, 0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("assign", "options", "words"),
    [
        ([0, 1], {"method": "max"}, "'max' is unknown: choose from dblf, sum, r_one, mean, anchor"),
        ([0, 1], {"method": "r_one"}, "give it a key"),
        ([0, 1], {"beta": "half"}, "beta 'half' must be a finite number"),
        ([0, 1], {"beta": float("nan")}, "beta nan must be a finite number"),
        ([0, 2], {}, "leaves group 1 without a layer"),
        ([0, 1], {"num_groups": 3}, "leaves group 2 without a layer"),
        ([-1, -1], {}, "without a layer"),
        ([0, 1, 2], {"num_groups": 2}, "group ids from 0 to 2, but num_groups is 2"),
        ([-2, 0], {}, "group ids from -2"),
        ([0.0, 1.0], {}, "one group id per layer"),
    ],
)
def test_refusals_name_the_value(assign, options, words):
    with pytest.raises(ValueError, match=words):
        fusion_matrix(np.asarray(assign), **options)


def test_a_traced_assignment_needs_num_groups():
    with pytest.raises(ValueError, match="num_groups is missing"):
        jax.jit(fusion_matrix)(jnp.array([0, 1]))


@settings(max_examples=25)
@given(assign=assignments(absent=True), seed=st.integers(0, 10**6), method=st.sampled_from(["dblf", "sum", "mean"]))
def test_matched_layers_have_the_mean_norm_of_their_group(assign, seed, method):
    layers = np.random.default_rng(seed).standard_normal((len(assign), 30)).astype(np.float32)
    matrix = np.asarray(fusion_matrix(assign, method=method))
    gains = np.asarray(norm_gains(jnp.asarray(layers @ layers.T), jnp.asarray(matrix), jnp.asarray(assign)))
    matched = np.linalg.norm(gains[:, None] * (matrix @ layers), axis=1)
    expected = [np.linalg.norm(layers[assign == group], axis=1).mean() for group in range(len(matrix))]
    np.testing.assert_allclose(matched, expected, rtol=2e-3)


def test_equal_layers_need_no_gain_and_a_fused_layer_of_norm_zero_gets_none():
    equal, assign = jnp.ones((4, 4)), jnp.zeros(4, jnp.int32)
    for method in ("dblf", "mean"):
        np.testing.assert_allclose(norm_gains(equal, fusion_matrix(assign, method=method), assign), [1.0], rtol=1e-5)
    assert norm_gains(jnp.zeros((4, 4)), fusion_matrix(assign), assign).tolist() == [1.0]
