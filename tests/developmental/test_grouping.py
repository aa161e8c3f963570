import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.developmental import (
    contiguous_groups,
    group_layers,
    kmeans,
    laplacian,
    laplacian_spectrum,
    layer_similarity,
    normalised_laplacian,
    spectral_embedding,
)
from devft_jax.developmental.options import LAPLACIANS

METHODS = ("dglg", "random", "even_blocks", "even_strides", "contiguous")


def random_similarity(seed: int, layers: int) -> np.ndarray:
    """Cosines of random vectors that drift with depth, so that there is something to find."""
    draw = np.random.default_rng(seed)
    vectors = draw.standard_normal((layers, 40)).cumsum(axis=0) + draw.standard_normal((layers, 40))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors @ vectors.T).astype(np.float32)


def assert_is_a_grouping(assign, layers: int, num_groups: int):
    assign = np.asarray(assign)
    assert assign.shape == (layers,)
    assert assign.dtype == np.int32
    assert set(assign.tolist()) == set(range(num_groups))
    firsts = [int(np.argmax(assign == group)) for group in range(num_groups)]
    assert firsts == sorted(firsts)


SPECIAL = {
    "zeros": np.zeros((9, 9), np.float32),
    "ones": np.ones((9, 9), np.float32),
    "identity": np.eye(9, dtype=np.float32),
    "negative": (2 * np.eye(9) - 1).astype(np.float32),
    "zero rows": np.pad(np.ones((4, 4), np.float32), (0, 5)),
    "huge": np.full((9, 9), 1e30, np.float32),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_groups", [1, 2, 4, 8, 9])
@settings(max_examples=8)
@given(data=st.data())
def test_every_group_is_used_and_they_are_ordered_by_first_layer(method, num_groups, data):
    name = data.draw(st.sampled_from(["random", *SPECIAL]))
    seed = data.draw(st.integers(0, 10**6))
    similarity = random_similarity(seed, 9) if name == "random" else SPECIAL[name]
    assign = group_layers(similarity, num_groups, method=method, key=jax.random.key(seed))
    assert_is_a_grouping(assign, 9, num_groups)


@settings(max_examples=30)
@given(
    points=st.lists(st.tuples(st.sampled_from([0.0, 1.0, 2.0, -5.0]), st.sampled_from([0.0, 1.0])), min_size=8, max_size=8),
    seed=st.integers(0, 1000),
)
def test_kmeans_leaves_no_group_empty_even_among_duplicates(points, seed):
    for num_groups in (1, 5, 8):
        labels, inertia = kmeans(jnp.asarray(points), num_groups, jax.random.key(seed))
        assert set(np.asarray(labels).tolist()) == set(range(num_groups))
        assert np.isfinite(inertia)
        if num_groups >= len(set(points)):
            assert inertia == 0


def test_no_freedom_no_choice():
    similarity = random_similarity(0, 6)
    for method in METHODS:
        key = jax.random.key(1)
        assert group_layers(similarity, 6, method=method, key=key).tolist() == [0, 1, 2, 3, 4, 5]
        assert group_layers(similarity, 1, method=method, key=key).tolist() == [0] * 6


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_planted_clusters_are_recovered(seed):
    draw = np.random.default_rng(seed)
    planted = np.concatenate([np.arange(4), draw.integers(0, 4, 12)])
    directions = draw.standard_normal((4, 300))
    layers = directions[planted] + 0.5 * draw.standard_normal((16, 300))
    similarity = layer_similarity({"w": jnp.asarray(layers, jnp.float32)})
    assert group_layers(similarity, 4).tolist() == planted.tolist()


def test_a_key_decides_and_no_key_is_a_fixed_one():
    similarity = random_similarity(3, 16)
    key = jax.random.key(7)
    for method in ("dglg", "random"):
        once = group_layers(similarity, 5, method=method, key=key)
        np.testing.assert_array_equal(once, group_layers(similarity, 5, method=method, key=key))
    fixed = jax.random.key(0, impl="threefry2x32")
    np.testing.assert_array_equal(group_layers(similarity, 5), group_layers(similarity, 5, key=fixed))
    draws = {tuple(group_layers(similarity, 5, method="random", key=jax.random.key(s)).tolist()) for s in range(9)}
    assert len(draws) > 1


def test_even_groups_have_the_sizes_and_places_they_promise():
    similarity = np.eye(10)
    blocks = group_layers(similarity, 4, method="even_blocks").tolist()
    assert blocks == sorted(blocks)
    assert sorted(np.bincount(blocks).tolist()) == [2, 2, 3, 3]
    assert group_layers(np.eye(8), 4, method="even_blocks").tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert group_layers(np.eye(8), 4, method="even_strides").tolist() == [0, 1, 2, 3] * 2


@pytest.mark.parametrize(("layers", "num_groups"), [(12, 4), (13, 5), (32, 31)])
def test_random_groups_have_equal_shares(layers, num_groups):
    for seed in range(5):
        key = jax.random.key(seed)
        sizes = np.bincount(group_layers(np.eye(layers), num_groups, method="random", key=key))
        assert sizes.max() - sizes.min() <= 1


def test_the_laplacian_by_hand():
    similarity = np.array([[1.0, 0.5, -0.25], [0.5, 1.0, 0.0], [-0.25, 0.0, 1.0]], np.float32)
    expected = [[0.25, -0.5, 0.25], [-0.5, 0.5, 0.0], [0.25, 0.0, -0.25]]
    np.testing.assert_allclose(laplacian(similarity), expected, atol=1e-6)


def test_the_laplacian_and_its_spectrum_agree_with_scipy():
    csgraph = pytest.importorskip("scipy.sparse.csgraph", reason="compares Eq. 3 with scipy's Laplacian")
    similarity = random_similarity(1, 12)
    # scipy leaves the diagonal out of the degrees, where D - W cancels it.
    np.testing.assert_allclose(laplacian(similarity), csgraph.laplacian(similarity), atol=1e-5)
    expected = np.linalg.eigvalsh(csgraph.laplacian(similarity.astype(np.float64)))
    np.testing.assert_allclose(laplacian_spectrum(similarity), expected, atol=1e-4)


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_the_embedding_spans_the_smallest_eigenspaces(seed):
    linalg = pytest.importorskip("scipy.linalg", reason="compares Eq. 3 with scipy's eigensolver")
    similarity = random_similarity(seed, 12).astype(np.float64)
    degrees = np.diag(similarity.sum(axis=1))
    values, vectors = linalg.eigh(degrees - similarity)
    embedding = np.asarray(spectral_embedding(jnp.asarray(similarity, jnp.float32), 4))
    assert embedding.shape == (12, 4)
    if values[4] - values[3] > 1e-2:
        ours, theirs = embedding @ embedding.T, vectors[:, :4] @ vectors[:, :4].T
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_the_embedding_finds_scikit_learns_subspace_for_a_non_negative_similarity():
    manifold = pytest.importorskip("sklearn.manifold", reason="compares Eq. 3 with scikit-learn")
    similarity = np.abs(random_similarity(5, 12)).astype(np.float64)
    theirs = manifold.spectral_embedding(
        similarity, n_components=4, norm_laplacian=False, drop_first=False, eigen_solver="arpack", random_state=0
    )
    theirs = np.linalg.qr(theirs)[0]
    ours = np.asarray(spectral_embedding(jnp.asarray(similarity, jnp.float32), 4))
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-3)


@pytest.mark.parametrize(("layers", "num_groups"), [(16, 4), (32, 16)])
def test_kmeans_finds_as_tight_groups_as_scikit_learn(layers, num_groups):
    cluster = pytest.importorskip("sklearn.cluster", reason="compares k-means with scikit-learn")
    for seed in range(6):
        points = spectral_embedding(random_similarity(seed, layers), num_groups)
        _, inertia = kmeans(points, num_groups, jax.random.key(seed))
        theirs = cluster.KMeans(num_groups, n_init=10, random_state=seed).fit(np.asarray(points))
        assert inertia <= 1.01 * theirs.inertia_ + 1e-6


def test_kmeans_ignores_signs_and_rotations_of_the_embedding():
    points = spectral_embedding(random_similarity(2, 16), 4)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0].astype(np.float32)
    key = jax.random.key(0)
    labels, inertia = kmeans(points, 4, key)
    for moved in (points * jnp.array([1, -1, -1, 1]), points @ rotation):
        again, other = kmeans(moved, 4, key)
        np.testing.assert_array_equal(labels, again)
        np.testing.assert_allclose(inertia, other, rtol=1e-3)


def test_kmeans_reports_the_inertia_of_its_labels():
    points = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    labels, inertia = map(np.asarray, kmeans(jnp.asarray(points), 5, jax.random.key(0)))
    direct = sum(((points[labels == g] - points[labels == g].mean(axis=0)) ** 2).sum() for g in range(5))
    np.testing.assert_allclose(inertia, direct, rtol=1e-5)


def test_groups_can_be_traced():
    similarity = random_similarity(0, 9)
    traced = jax.jit(lambda w: group_layers(w, 3))(similarity)
    np.testing.assert_array_equal(traced, group_layers(similarity, 3))


@pytest.mark.parametrize(
    ("similarity", "num_groups", "options", "words"),
    [
        (np.eye(4), 5, {}, "num_groups 5 is not between 1 and the 4 layers"),
        (np.eye(4), 0, {}, "num_groups 0"),
        (np.eye(4), 2, {"method": "ward"}, "'ward' is unknown: choose from dglg, random, even_blocks"),
        (np.eye(4), 2, {"method": "random"}, "give it a key"),
        (np.zeros((4, 3)), 2, {}, r"shape \(4, 3\)"),
        (np.full((4, 4), np.nan), 2, {}, "NaN"),
    ],
)
def test_refusals_name_the_value(similarity, num_groups, options, words):
    with pytest.raises(ValueError, match=words):
        group_layers(similarity, num_groups, **options)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(
    "function",
    [
        laplacian,
        laplacian_spectrum,
        lambda w: spectral_embedding(w, 8),
        lambda w: kmeans(w[:, :8], 8, jax.random.key(0, impl="threefry2x32")),
        lambda w: group_layers(w, 8),
        lambda w: group_layers(w, 8, method="random", key=jax.random.key(0, impl="threefry2x32")),
    ],
    ids=["laplacian", "spectrum", "embedding", "kmeans", "dglg", "random"],
)
def test_lowers_for_accelerators(platform, function):
    similarity = jax.ShapeDtypeStruct((32, 32), jnp.float32)
    exported = jax.export.export(jax.jit(function), platforms=[platform])(similarity)
    assert exported.platforms == (platform,)


@settings(max_examples=10)
@given(data=st.data())
def test_other_laplacians_and_lone_ends_give_groupings_too(data):
    name = data.draw(st.sampled_from(["random", *SPECIAL]))
    seed, num_groups = data.draw(st.integers(0, 10**6)), data.draw(st.sampled_from([2, 5, 8]))
    similarity = random_similarity(seed, 9) if name == "random" else SPECIAL[name]
    method = data.draw(st.sampled_from(METHODS))
    for kind in LAPLACIANS:
        ends = group_layers(similarity, num_groups, method=method, key=jax.random.key(seed), laplacian=kind, lone_ends=True)
        assert_is_a_grouping(ends, 9, num_groups)
        assert np.count_nonzero(ends == 0) == 1
        assert num_groups == 2 or np.count_nonzero(ends == num_groups - 1) == 1
        assert ends[0] == 0
        assert ends[-1] == num_groups - 1


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_the_normalised_laplacian_and_its_embedding_are_those_of_scikit_learn(seed):
    graphs, manifold = pytest.importorskip("scipy.sparse.csgraph"), pytest.importorskip("sklearn.manifold")
    similarity = np.abs(random_similarity(seed, 9))
    expected, degrees = graphs.laplacian(similarity, normed=True, return_diag=True)
    found, scale = normalised_laplacian(jnp.asarray(similarity))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(scale, 1 / degrees, rtol=1e-5)
    mine = np.abs(spectral_embedding(jnp.asarray(similarity), 3, "normalised"))
    theirs = np.abs(manifold.spectral_embedding(similarity, n_components=3, drop_first=False, random_state=0))
    np.testing.assert_allclose(mine, theirs, atol=2e-3)
    rows = np.asarray(spectral_embedding(jnp.asarray(similarity), 3, "row_normalised"))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("kind", ["normalised", "row_normalised"])
def test_blocks_without_links_are_found_and_a_scale_changes_nothing(kind):
    blocks = np.kron(np.eye(3), np.ones((3, 3))).astype(np.float32)
    # Interleaved, so that blocks are not runs of layers.
    order = np.array([0, 3, 6, 1, 4, 7, 2, 5, 8])
    blocks = blocks[np.ix_(order, order)]
    for scale in (1.0, 1e-3):
        assert group_layers(blocks * scale, 3, laplacian=kind).tolist() == [0, 1, 2] * 3
    spectrum = laplacian_spectrum(jnp.asarray(blocks), kind)
    np.testing.assert_allclose(spectrum, [0, 0, 0, *[1.5] * 6], atol=1e-5)


def run_cost(similarity, begins):
    """The sum over runs of the squared distances from the run's mean, W being inner products."""
    total = 0.0
    for start, end in zip(begins, [*begins[1:], len(similarity)], strict=True):
        own = similarity[start:end, start:end].astype(float)
        total += np.trace(own) - own.sum() / (end - start)
    return total


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), layers=st.integers(2, 8), data=st.data())
def test_contiguous_groups_are_the_best_of_all_divisions(seed, layers, data):
    num_groups = data.draw(st.integers(1, layers))
    noise = np.random.default_rng(seed).standard_normal((layers, layers))
    similarity = ((noise + noise.T) / 2).astype(np.float32)
    assign = np.asarray(contiguous_groups(jnp.asarray(similarity), num_groups))
    assert_is_a_grouping(assign, layers, num_groups)
    assert (np.diff(assign) >= 0).all()
    divisions = ([0, *cuts] for cuts in itertools.combinations(range(1, layers), num_groups - 1))
    best = min(run_cost(similarity, begins) for begins in divisions)
    begins = [int(np.argmax(assign == group)) for group in range(num_groups)]
    assert run_cost(similarity, begins) == pytest.approx(best, abs=1e-4)


def test_contiguous_groups_find_runs_of_similar_layers():
    sizes = (1, 4, 2, 3)
    expected = np.repeat(np.arange(4), sizes)
    similarity = (expected[:, None] == expected[None, :]).astype(np.float32)
    assert group_layers(similarity, 4, method="contiguous").tolist() == expected.tolist()


def test_an_unknown_laplacian_is_refused():
    with pytest.raises(ValueError, match="laplacian 'ncut' is unknown: choose from paper, normalised, row_normalised"):
        group_layers(np.eye(4, dtype=np.float32), 2, laplacian="ncut")
