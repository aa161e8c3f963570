"""Grouping of layers: Eqs. 2 and 3 of the DevFT paper, and its controls.

DGLG ("deconfliction-guided layer grouping") asks for G groups with a small total cut (Eq. 2) and relaxes
it to spectral clustering with the unnormalised Laplacian (Eq. 3):

    D = diag(sum_j W_ij),  Lap = D - W,  E = eigenvectors of the G smallest eigenvalues (as columns),
    groups = k-means of the rows of E, k = G

The trivial eigenvector stays in E and rows are not normalised, as in the paper. The paper does not mention seeds or
restarts: k-means here is k-means++ followed by Lloyd's algorithm, with many restarts in parallel of which the best is kept;
it depends only on the key and never returns an empty group. The result does not depend on the signs or the rotation that an
eigensolver may choose, because distances between rows do not.

Negative similarities are used as they are; the Laplacian may then have negative eigenvalues. Similarities between layers
of pretrained LLaMAs are small, and one large group with singletons is a common result.

Two other Laplacians, ours in place of the paper's, favour groups of equal weight over single layers. Both set negative
similarities and the diagonal to zero and scale by the degrees, Lap = D^-1/2 (D - W) D^-1/2, with eigenvectors U:

    normalised        E = D^-1/2 U, normalised cuts (Shi and Malik, Normalized Cuts and Image Segmentation, 2000)
    row_normalised    rows of U, each scaled to length 1 (Ng, Jordan and Weiss, On Spectral Clustering, 2001)

`contiguous` cuts the layers into runs by dynamic programming instead: it minimises the sum over groups of the squared
distances from the group's mean in the space in which W are inner products,

    sum_g (sum_{i in g} W_ii - sum_{i, j in g} W_ij / |g|).
"""

import functools
import math
import operator

import jax
import jax.numpy as jnp

from devft_jax.developmental.leaves import is_concrete
from devft_jax.developmental.options import GROUPINGS, LAPLACIANS


def group_layers(
    similarity: jax.Array,
    num_groups: int,
    *,
    method: str = "dglg",
    key: jax.Array | None = None,
    laplacian: str = "paper",
    lone_ends: bool = False,
) -> jax.Array:
    """A group for every layer: i32[L], ids 0..G-1 in the order of each group's first layer, all used.

    * `dglg`: Eq. 3. `key` seeds k-means; without one a fixed key is used.
    * `random`: layers are shuffled and distributed in equal shares; needs `key`.
    * `even_blocks`: runs of neighbouring layers of equal length (the paper's Even is one of these two).
    * `even_strides`: layer l goes to group l mod G.
    * `contiguous`: runs of neighbouring layers that are as similar as possible; see the module's docstring.

    Args:
      similarity: f32[L, L]; methods other than `dglg` and `contiguous` use only its size.
      num_groups: G.
      method: one of the above.
      key: random key.
      laplacian: that of `dglg`, a member of `LAPLACIANS`.
      lone_ends: keep the first and the last layer in groups of their own, with two groups only the first; the method divides
        the others.

    Raises:
      ValueError: the method is unknown, a key is missing, the number of groups is outside 1..L, or the similarity is not
        finite.
    """
    layers = _square(similarity)
    check_grouping(method, num_groups, layers, has_key=key is not None, laplacian=laplacian)
    if num_groups == layers:
        return jnp.arange(layers, dtype=jnp.int32)
    if num_groups == 1:
        return jnp.zeros(layers, jnp.int32)
    if lone_ends:
        if num_groups == 2:
            return jnp.minimum(jnp.arange(layers, dtype=jnp.int32), 1)
        inner = group_layers(similarity[1:-1, 1:-1], num_groups - 2, method=method, key=key, laplacian=laplacian)
        ends = jnp.array([0, num_groups - 1], jnp.int32)
        return jnp.concatenate([ends[:1], inner + 1, ends[1:]])
    index = jnp.arange(layers, dtype=jnp.int32)
    if method == "even_blocks":
        return index * num_groups // layers
    if method == "even_strides":
        return index % num_groups
    if method == "random":
        assert key is not None
        dealt = jnp.zeros(layers, jnp.int32).at[jax.random.permutation(key, layers)]
        return number_by_first_layer(dealt.set(index % num_groups), num_groups)
    if is_concrete(similarity) and not bool(jnp.isfinite(similarity).all()):
        raise ValueError(
            "The layer similarity holds NaN or infinite values, so layers cannot be grouped: "
            "look for non-finite weights in the model or its adapter."
        )
    if method == "contiguous":
        return contiguous_groups(similarity, num_groups)
    if key is None:
        key = jax.random.key(0, impl="threefry2x32")
    return _spectral_groups(similarity, num_groups, key, laplacian)


def check_grouping(method: str, num_groups: int, num_layers: int, *, has_key: bool, laplacian: str = "paper") -> None:
    """Check the arguments of `group_layers`; reads no weights.

    Args:
      method: the grouping method.
      num_groups: G.
      num_layers: L.
      has_key: whether a key will be given.
      laplacian: name of the Laplacian.

    Raises:
      ValueError: an argument is invalid.
    """
    if method not in GROUPINGS:
        raise ValueError(f"grouping method {method!r} is unknown: choose from {', '.join(GROUPINGS)}.")
    if laplacian not in LAPLACIANS:
        raise ValueError(f"laplacian {laplacian!r} is unknown: choose from {', '.join(LAPLACIANS)}.")
    if not 1 <= operator.index(num_groups) <= num_layers:
        raise ValueError(
            f"num_groups {num_groups} is not between 1 and the {num_layers} layers of the model: "
            "every group needs a layer of its own."
        )
    if method == "random" and not has_key:
        raise ValueError("grouping method 'random' draws groups at random: give it a key.")


@functools.partial(jax.jit, static_argnames="num_groups")
def number_by_first_layer(labels: jax.Array, num_groups: int) -> jax.Array:
    """The groups numbered 0..G-1 in the order of their first layers: i32[L].

    Args:
      labels: i32[L], the group of each layer.
      num_groups: G.
    """
    layers = labels.shape[0]
    first = jnp.full(num_groups, layers, jnp.int32).at[labels].min(jnp.arange(layers, dtype=jnp.int32))
    return jnp.argsort(jnp.argsort(first))[labels].astype(jnp.int32)


def laplacian(similarity: jax.Array) -> jax.Array:
    """The unnormalised Laplacian D - W of Eq. 3: f32[L, L]; its rows sum to zero.

    Args:
      similarity: W, f32[L, L].
    """
    return jnp.diag(similarity.sum(axis=1)) - similarity


def normalised_laplacian(similarity: jax.Array) -> tuple[jax.Array, jax.Array]:
    """D^-1/2 (D - W) D^-1/2 with negative similarities and the diagonal set to zero: f32[L, L]; and D^-1/2, f32[L].

    A layer without any similar one has degree 1, so that it is a group of its own.

    Args:
      similarity: W, f32[L, L].
    """
    others = jnp.maximum(similarity, 0.0) * (1 - jnp.eye(len(similarity), dtype=similarity.dtype))
    degrees = others.sum(axis=1)
    isolated = degrees <= 0
    scale = jax.lax.rsqrt(jnp.where(isolated, 1.0, degrees))
    return jnp.diag(jnp.where(isolated, 0.0, 1.0)) - others * scale[:, None] * scale[None, :], scale


@functools.partial(jax.jit, static_argnames="kind")
def laplacian_spectrum(similarity: jax.Array, kind: str = "paper") -> jax.Array:
    """The eigenvalues of the Laplacian in ascending order: f32[L]. A gap after the G-th suggests G groups.

    Args:
      similarity: W, f32[L, L].
      kind: a member of `LAPLACIANS`.
    """
    return jnp.linalg.eigvalsh(laplacian(similarity) if kind == "paper" else normalised_laplacian(similarity)[0])


@functools.partial(jax.jit, static_argnames=("num_groups", "kind"))
def spectral_embedding(similarity: jax.Array, num_groups: int, kind: str = "paper") -> jax.Array:
    """E of Eq. 3, the eigenvectors of the G smallest eigenvalues of the Laplacian as columns: f32[L, G].

    Args:
      similarity: W, f32[L, L].
      num_groups: G.
      kind: a member of `LAPLACIANS`.
    """
    if kind == "paper":
        return jnp.linalg.eigh(laplacian(similarity))[1][:, :num_groups]
    matrix, scale = normalised_laplacian(similarity)
    vectors = jnp.linalg.eigh(matrix)[1][:, :num_groups]
    if kind == "normalised":
        return vectors * scale[:, None]
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=1, keepdims=True), jnp.finfo(vectors.dtype).tiny)


@functools.partial(jax.jit, static_argnames=("num_groups", "kind"))
def _spectral_groups(similarity: jax.Array, num_groups: int, key: jax.Array, kind: str) -> jax.Array:
    labels, _ = kmeans(spectral_embedding(similarity, num_groups, kind), num_groups, key)
    return number_by_first_layer(labels, num_groups)


@functools.partial(jax.jit, static_argnames="num_groups")
def contiguous_groups(similarity: jax.Array, num_groups: int) -> jax.Array:
    """The runs of neighbouring layers of least cost, by dynamic programming: i32[L]; see the module's docstring.

    Args:
      similarity: W, f32[L, L].
      num_groups: G.
    """
    layers = similarity.shape[0]
    cost = _run_costs(similarity)
    first = jnp.where(jnp.arange(layers + 1, dtype=jnp.int32) == 0, 0.0, jnp.inf)

    def add(least: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        # [start, end]: the best division before `start`, and one more run from there.
        total = least[:, None] + cost
        return total.min(axis=0), total.argmin(axis=0).astype(jnp.int32)

    _, starts = jax.lax.scan(add, first, None, length=num_groups)

    def back(end: jax.Array, starts: jax.Array) -> tuple[jax.Array, jax.Array]:
        return starts[end], starts[end]

    _, begins = jax.lax.scan(back, jnp.int32(layers), starts, reverse=True)
    return (jnp.arange(layers, dtype=jnp.int32)[:, None] >= begins[None, 1:]).sum(axis=1).astype(jnp.int32)


def _run_costs(similarity: jax.Array) -> jax.Array:
    """The cost of the run of layers start .. end - 1, f32[L + 1, L + 1]; infinite for a run without layers."""
    layers = similarity.shape[0]
    sums = jnp.pad(jnp.cumsum(jnp.cumsum(similarity, axis=0), axis=1), ((1, 0), (1, 0)))
    own = jnp.pad(jnp.cumsum(jnp.diagonal(similarity)), (1, 0))
    edge = jnp.arange(layers + 1, dtype=jnp.int32)
    size = edge[None, :] - edge[:, None]
    corner = jnp.diagonal(sums)
    within = corner[None, :] - sums - sums.T + corner[:, None]
    cost = own[None, :] - own[:, None] - within / jnp.maximum(size, 1)
    return jnp.where(size > 0, cost, jnp.inf)


@functools.partial(jax.jit, static_argnames=("num_groups", "restarts", "max_steps"))
def kmeans(
    points: jax.Array,
    num_groups: int,
    key: jax.Array,
    *,
    restarts: int = 256,
    max_steps: int = 100,
) -> tuple[jax.Array, jax.Array]:
    """k-means clustering of points.

    Greedy k-means++ initialisation, then Lloyd's algorithm until the labels do not change or `max_steps`; the best of
    `restarts` by inertia (the sum of squared distances to the group means). An empty group gets the point farthest from its
    own centre among groups of more than one point.

    Args:
      points: f32[N, D].
      num_groups: G, at most N.
      key: random key.
      restarts: number of initialisations.
      max_steps: largest number of steps after an initialisation.

    Returns:
      Labels i32[N] with every group used, and their inertia f32[].
    """

    def once(uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
        start = _assign(points, _plus_plus(points, uniform))

        def unfinished(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            step, changed, _ = state
            return changed & (step < max_steps)

        def lloyd(
            state: tuple[jax.Array, jax.Array, jax.Array],
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            step, _, labels = state
            moved = _assign(points, _means(points, labels, num_groups))
            return step + 1, (moved != labels).any(), moved

        state = (jnp.int32(0), jnp.bool_(True), start)
        _, _, labels = jax.lax.while_loop(unfinished, lloyd, state)
        centres = _means(points, labels, num_groups)
        return labels, jnp.square(points - centres[labels]).sum()

    candidates = 2 + int(math.log(num_groups))
    uniform = jax.random.uniform(key, (restarts, num_groups, candidates), jnp.float32)
    labels, inertia = jax.vmap(once)(uniform)
    best = jnp.argmin(inertia)
    return labels[best], inertia[best]


def _square_distances(points: jax.Array, centres: jax.Array) -> jax.Array:
    return jnp.square(points[:, None, :] - centres[None, :, :]).sum(axis=-1)


def _plus_plus(points: jax.Array, uniform: jax.Array) -> jax.Array:
    """Greedy k-means++ centres f32[G, D] from `uniform` f32[G, candidates] draws.

    Candidates are drawn with probability proportional to the squared distance from the nearest centre so far; the candidate
    with the smallest resulting sum of these distances becomes a centre.
    """
    last = points.shape[0] - 1

    def draw(nearest: jax.Array, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
        heaped = jnp.cumsum(nearest)
        drawn = (heaped[None, :] <= uniform[:, None] * heaped[-1]).sum(axis=1)
        candidates = points[jnp.minimum(drawn, last)]
        remaining = jnp.minimum(nearest[:, None], _square_distances(points, candidates))
        best = jnp.argmin(remaining.sum(axis=0))
        return remaining[:, best], candidates[best]

    first = points[(uniform[0, 0] * points.shape[0]).astype(jnp.int32)]
    _, others = jax.lax.scan(draw, _square_distances(points, first[None])[:, 0], uniform[1:])
    return jnp.concatenate([first[None], others])


def _means(points: jax.Array, labels: jax.Array, num_groups: int) -> jax.Array:
    member = jax.nn.one_hot(labels, num_groups, axis=0, dtype=points.dtype)
    sums = jnp.matmul(member, points, precision=jax.lax.Precision.HIGHEST)
    return sums / member.sum(axis=1, keepdims=True)


def _assign(points: jax.Array, centres: jax.Array) -> jax.Array:
    """The nearest centre of every point, i32[N], with empty groups refilled."""
    distances = _square_distances(points, centres)
    labels = jnp.argmin(distances, axis=1).astype(jnp.int32)
    groups = centres.shape[0]

    def refill(group: jax.Array, labels: jax.Array) -> jax.Array:
        sizes = jnp.zeros(groups, jnp.int32).at[labels].add(1)
        own = jnp.take_along_axis(distances, labels[:, None], axis=1)[:, 0]
        farthest = jnp.argmax(jnp.where(sizes[labels] > 1, own, -1.0))
        return jnp.where(sizes[group] == 0, labels.at[farthest].set(group), labels)

    return jax.lax.fori_loop(0, groups, refill, labels)


def _square(similarity: jax.Array) -> int:
    shape = jnp.shape(similarity)
    if len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
        raise ValueError(f"similarity has shape {shape}: give the [L, L] matrix of layer_similarity(tree).")
    return shape[0]
