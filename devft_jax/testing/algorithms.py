"""The laws of an algorithm, each as a function of a `Case`.

They are stated in terms of what a model computes and the shapes of messages, not of the leaves of a state, which differ
between methods.
"""

import functools
import inspect
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.federated.algorithm import Algorithm, Share
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.messages import sent_parts
from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.llama import forward
from devft_jax.testing.laws import LawError, described, difference, effect_difference, require, require_same_shapes
from devft_jax.testing.rounds import TINY, Case, client, clients_round, sums_of
from devft_jax.testing.stages import carries_rows, keeps_absent_layers, returns_through_the_identity, views_the_stage
from devft_jax.typing import PyTree

EXACT = 1e-5
"""Largest allowed difference between two float32 computations of the same value."""
SMALLEST_SLOPE = 1e-5
"""A direction with a smaller slope counts as zero in both factors: it cannot learn."""


def check_algorithm(
    algorithm: Algorithm | Callable[[MethodConfig], Algorithm],
    *,
    model: ModelConfig = TINY,
    participants: int = 3,
    quick: bool = False,
) -> None:
    """Raise `LawError` unless an algorithm keeps the laws of `ALGORITHM_LAWS`.

    Args:
      algorithm: a function of a `MethodConfig`, as in the registry, which is called with small options; or a record. A
        record is checked as it is, so it has to fit `model` and `participants`; make one of low rank, such as 4.
      model: the architecture of the model that is adapted; the default has 4 layers of width 16.
      participants: clients of a round; for a record, at most the number for which it was made.
      quick: only the laws that compile almost nothing, which `train` checks on objects that are passed to it.

    Raises:
      LawError: a law is violated; names the law and the values found.
    """
    if not isinstance(algorithm, Algorithm):
        check_factory(algorithm, participants)
        algorithm = algorithm(small_options(participants))
    case = Case(algorithm, model, participants)
    for law in QUICK_LAWS if quick else ALGORITHM_LAWS:
        check_law(algorithm.name, law, case)


def check_law(name: str, law: Callable[[Any], None], case: Any) -> None:
    """Raise `LawError`, with the name of what was checked and the law, unless the law holds.

    Args:
      name: what is checked.
      law: one of the laws.
      case: the case to check it on.
    """
    title = (inspect.getdoc(law) or "").splitlines()[0]
    try:
        law(case)
    except LawError as error:
        raise LawError(f"{name} breaks the law '{title}' {error}") from None
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        at = ([each for each in frames if "site-packages" not in each.filename] or frames)[-1]
        raise LawError(
            f"{name} cannot be asked about the law '{title}' {type(error).__name__} at {at.filename}:{at.lineno}: {error}"
        ) from error


def small_options(participants: int = 3, **changes: Any) -> MethodConfig:
    """Options that fit the tiny model.

    Args:
      participants: clients of a round.
      changes: further options.
    """
    targets = ("q", "v", "down")
    return MethodConfig(rank=4, alpha=6.0, dropout=0.0, targets=targets, clients_per_round=participants, **changes)


def check_factory(make: Callable[[MethodConfig], Algorithm], participants: int = 3) -> None:
    """Raise `LawError` unless messages have the dtype that the options name.

    Args:
      make: options -> the algorithm.
      participants: clients of a round.
    """
    case = Case(make(small_options(participants, message_dtype="bfloat16")), TINY, participants)
    downs, ups = jax.eval_shape(lambda: _messages(case))
    # Algorithms that pool all examples send nothing.
    for way, message in () if case.algorithm.pools else (("down", downs), ("up", ups)):
        wide = [
            leaf.dtype
            for leaf in jax.tree.leaves(sent_parts(message))
            if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype != jnp.bfloat16
        ]
        if wide:
            raise LawError(
                f"{case.algorithm.name} breaks the law 'Messages travel in the run's message_dtype.' One of bfloat16 has "
                f"{wide[0]} in its message {way}; cast it by in_message_dtype or change_of."
            )


# ---------------------------------------------------------------------------------------------------
# Laws that compile almost nothing


def has_a_name(case: Case) -> None:
    """The record says what it is, and can be a key.

    Args:
      case: what the algorithm is checked with.
    """
    algorithm = case.algorithm
    require(isinstance(algorithm.name, str) and algorithm.name, f"its name is {algorithm.name!r}; give a text.")
    require(algorithm.weighting in ("examples", "uniform"), f"its weighting is {algorithm.weighting!r}.")
    require(algorithm.consensus is None or algorithm.personal is not None, "it has a consensus of no personal models.")
    hash(algorithm)


def keeps_shapes(case: Case) -> None:
    """A round can be traced, clients under vmap, and leaves the shapes of state, rows and messages as they were.

    Args:
      case: what the algorithm is checked with.
    """
    algorithm, weights = case.algorithm, case.weights
    slots = jnp.arange(case.participants, dtype=jnp.int32)

    full, full_rows, server, rows = jax.eval_shape(lambda: _begin(case))
    require_same_shapes("the server's state through the identity map", server, full)
    require_same_shapes("a client's row through the identity map", rows, full_rows)

    def one_round(server: PyTree, rows: PyTree) -> Any:
        ups, after = clients_round(algorithm, case.participants, server, rows, 0, 0.1, None)
        sums = sums_of(algorithm, ups, weights, slots)
        return (*algorithm.finalize(server, sums), ups, after, sums)

    after, metrics, ups, new_rows, sums = jax.eval_shape(one_round, server, rows)
    require_same_shapes("the server's state in a round", after, server)
    require_same_shapes("a client's row in a round", new_rows, rows)
    wrong = [each for each in described(sums) if " float32[" not in each]
    require(not wrong, f"a contribution holds {wrong[:1]}; make all of it float32.")
    odd = [name for name, value in metrics.items() if value.shape != () or value.dtype != jnp.float32]
    require(not odd, f"the metric {odd[:1]} is not a f32[].")
    later = jax.eval_shape(one_round, after, new_rows)
    require_same_shapes("a message up from round to round", later[2], ups)

    def inside(server: PyTree, rows: PyTree) -> Any:
        train, frozen = algorithm.start(client(algorithm, server, case.row(rows), jax.random.key(0, impl="threefry2x32")))
        penalty = jnp.asarray(algorithm.penalty(train, frozen), jnp.float32)
        return train, algorithm.adapter(train, frozen), algorithm.view(server), penalty

    train, adapter, view, penalty = jax.eval_shape(inside, server, rows)
    require(isinstance(adapter, Adapter) and isinstance(view, Adapter), "adapter and view have to give an Adapter.")
    require(penalty.shape == (), f"the penalty has shape {penalty.shape}; reduce it to one number.")
    narrow = [each for each in described(train) if " float32[" not in each]
    require(not narrow, f"what trains holds {narrow[:1]}; train in float32 (as_float32).")
    if algorithm.layered:
        bare = [leaf.shape for leaf in jax.tree.leaves(train) if leaf.shape[:1] != (case.model.layers,)]
        require(not bare, f"a leaf of shape {bare[:1]} trains and does not lead with the layers; or say layered=False.")


def zero_at_weight_zero(case: Case) -> None:
    """A contribution is zero at weight zero.

    Args:
      case: what the algorithm is checked with.
    """
    algorithm = case.algorithm
    _, shapes = jax.eval_shape(lambda: _messages(case))
    up = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)

    def largest(up: PyTree, weight: jax.Array) -> list[jax.Array]:
        sums = algorithm.contribution(up, Share(weight, jnp.int32(0)))
        return [jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(sums)]

    found = max(map(float, jax.jit(largest)(up, jnp.float32(0.0))), default=0.0)
    require(found == 0, f"a message with weight 0 contributes up to {found:.3g}; multiply everything by share.weight.")


def _begin(case: Case) -> Any:
    """The server and the rows [K, ...] at full depth and for the stage of the full model; traceable."""
    full = case.full()
    rows = case.rows(full)
    staged = jax.vmap(lambda row: case.algorithm.submodel_row(row, case.identity), axis_size=case.participants)(rows)
    return full, rows, case.algorithm.submodel(full, case.identity), staged


def _messages(case: Case) -> Any:
    """One client's messages down and up; traceable."""
    _, _, server, rows = _begin(case)
    down = client(case.algorithm, server, case.row(rows), jax.random.key(0, impl="threefry2x32")).down
    return down, case.row(clients_round(case.algorithm, case.participants, server, rows, 0, 0.1, None)[0])


QUICK_LAWS: tuple[Callable[[Case], None], ...] = (has_a_name, keeps_shapes, zero_at_weight_zero)


# ---------------------------------------------------------------------------------------------------
# Laws of a round


def is_pure(case: Case) -> None:
    """A round computes the same each time it is traced.

    Args:
      case: what the algorithm is checked with.
    """
    algorithm, (_, server, rows) = case.algorithm, case.start
    slots = jnp.arange(case.participants, dtype=jnp.int32)

    def one_round(server: PyTree, rows: PyTree) -> Any:
        ups, after = clients_round(algorithm, case.participants, server, rows, 0, 0.1, None)
        return algorithm.finalize(server, sums_of(algorithm, ups, case.weights, slots)), after

    first, second = (jax.make_jaxpr(lambda *given: one_round(*given))(server, rows) for _ in range(2))
    same = str(first) == str(second) and difference(first.consts, second.consts) == 0
    require(same, "two traces differ; keep no state outside of the arguments, and draw from the participant's key alone.")


def ignores_order(case: Case) -> None:
    """The order of clients does not matter, nor does the scale of the weights.

    Args:
      case: what the algorithm is checked with.
    """
    algorithm, (_, server, rows) = case.algorithm, case.start
    ups, _ = case.trained(server, rows)
    after, metrics = case.aggregated(server, ups)
    back = jnp.arange(case.participants - 1, -1, -1)
    # Each also in another slot.
    reordered, _ = case.aggregated(server, jax.tree.map(lambda leaf: leaf[back], ups), case.weights[back])
    heavy, _ = case.aggregated(server, ups, 1000 * case.weights)
    for other, what in ((reordered, "in another order of clients"), (heavy, "with weights a thousand times as large")):
        apart = effect_difference(algorithm.view(after), algorithm.view(other))
        require(apart <= EXACT, f"the model differs by {apart:.3g} {what}; make sums linear in share.weight.")
    require(all(np.isfinite(value) for value in metrics.values()), f"metrics are not finite: {metrics}.")


def needs_one_client(case: Case) -> None:
    """One client is enough, whatever its slot, and padding changes nothing.

    Args:
      case: what the algorithm is checked with.
    """
    algorithm, (_, server, rows) = case.algorithm, case.start
    ups, _ = case.trained(server, rows)
    alone = jnp.where(jnp.arange(case.participants) == case.participants - 1, 2.0, 0.0)
    after, metrics = case.aggregated(server, ups, alone)
    other = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[-1:], leaf.shape), ups)
    padded, _ = case.aggregated(server, other, alone)
    apart = effect_difference(algorithm.view(after), algorithm.view(padded))
    require(apart <= EXACT, f"clients of weight 0 change the model by {apart:.3g}.")
    values = [*jax.tree.leaves(jax.device_get(algorithm.view(after))), *metrics.values()]
    require(all(np.isfinite(value).all() for value in values), "with one client the model or a metric is not finite.")


def updates_arrive(case: Case) -> None:
    """What clients learn reaches the global model, where there is one.

    Args:
      case: what the algorithm is checked with.
    """
    algorithm, (_, server, rows) = case.algorithm, case.start
    # Two rounds: if b begins at zero and only a is shared, the first round changes no product.
    after, _ = case.after_rounds(server, rows)
    if algorithm.has_global_model:
        apart = difference(jax.device_get(algorithm.view(after)), jax.device_get(algorithm.view(server)))
        require(apart > EXACT, "after two rounds in which every client changed, the view is unchanged.")


def stays_when_nothing_moves(case: Case) -> None:
    """A round in which nothing moved changes no model.

    Args:
      case: what the algorithm is checked with.
    """
    algorithm, (_, server, rows) = case.algorithm, case.start
    ups, _ = case.trained(server, rows, move=0.0)
    after, metrics = case.aggregated(server, ups)
    apart = effect_difference(algorithm.view(after), algorithm.view(server))
    require(apart <= EXACT, f"the model changes by {apart:.3g}.")
    require(all(np.isfinite(value) for value in metrics.values()), f"metrics are not finite: {metrics}.")


# ---------------------------------------------------------------------------------------------------
# The law of further learning


def slopes(case: Case, server: PyTree, rows: PyTree) -> dict[str, np.ndarray]:
    """How much each direction of a client's factors can change what its model computes.

    With fixed random vectors u and v it is the norm of the gradient of (u a_d)(b_d v) with respect to everything that the
    client trains: zero exactly for a direction d whose factors are both zero, or of which neither is trained.

    Args:
      case: what the algorithm is checked with.
      server: the server's state of a stage at full depth.
      rows: [K, ...].

    Returns:
      f64[G, r] for every projection; for a client without factors the norm of the gradient of its logits, f64[1, 1].
    """
    found = jit_slopes(case.algorithm, case.model)(case.base, server, case.row(rows))
    return {name: np.asarray(leaf, float) for name, leaf in found.items()}


@functools.lru_cache(maxsize=64)
def jit_slopes(algorithm: Algorithm, model: ModelConfig) -> Any:
    """(base, server, row) -> `slopes`, not yet compiled.

    Args:
      algorithm: the record.
      model: the architecture of the model.
    """

    def of_client(base: Base, server: PyTree, row: PyTree) -> dict[str, jax.Array]:
        train, frozen = algorithm.start(client(algorithm, server, row, jax.random.key(0, impl="threefry2x32")))

        def products(train: PyTree) -> dict[str, jax.Array]:
            lora = algorithm.adapter(train, frozen).lora
            return {name: _probed(factors.a, factors.b) for name, factors in lora.items()}

        def logits(train: PyTree) -> dict[str, jax.Array]:
            tokens = jnp.arange(8, dtype=jnp.int32).reshape(1, 8)
            prompts = jnp.array([3], jnp.int32)
            found = forward(model, base, algorithm.adapter(train, frozen), tokens, prompt_lengths=prompts)
            return {"the logits": jnp.sum(jnp.sin(found)).reshape(1, 1)}

        function = products if jax.eval_shape(products, train) else logits
        return {name: _norm_of_last(tree, 2) for name, tree in jax.jacrev(function)(train).items()}

    return jax.jit(of_client)


def _probed(a: jax.Array, b: jax.Array) -> jax.Array:
    left, right = (np.random.default_rng(size).standard_normal(size, np.float32) for size in (a.shape[1], b.shape[2]))
    return jnp.einsum("i,lir->lr", left, a) * jnp.einsum("lro,o->lr", b, right)


def _norm_of_last(tree: PyTree, kept: int) -> jax.Array:
    """The norm over all leaves and all axes except the first `kept`."""
    squares = [jnp.sum(leaf.reshape(*leaf.shape[:kept], -1) ** 2, axis=-1) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares[1:], start=squares[0]))


def require_learning(case: Case, before: dict[str, np.ndarray], server: PyTree, rows: PyTree, when: str) -> None:
    """Raise `LawError` if a direction that could learn in the first round no longer can.

    Args:
      case: what the algorithm is checked with.
      before: the slopes of the first round.
      server: the server's state of a stage at full depth.
      rows: [K, ...].
      when: when the slopes were computed, for the message.
    """
    for name, found in slopes(case, server, rows).items():
        could, can = before[name] > SMALLEST_SLOPE, found > SMALLEST_SLOPE
        lost = could & ~can if could.shape == can.shape else could.any(axis=0) & ~can
        require(
            not lost.any(),
            f"{when} {int(lost.sum())} of {lost.size} directions of {name} cannot learn any more: they are zero in both "
            "factors, as in a decomposition of zero. Keep one factor, or compute the factors by best_factors.",
        )


def learns_on(case: Case) -> None:
    """After a round in which nothing moved, the next round can still learn.

    Args:
      case: what the algorithm is checked with.
    """
    _, server, rows = case.start
    before = slopes(case, server, rows)
    for name, found in before.items():
        require((found > SMALLEST_SLOPE).any(), f"in the first round no direction of {name} can learn.")
    for _ in range(2):
        ups, rows = case.trained(server, rows, move=0.0)
        server, _ = case.aggregated(server, ups)
    require_learning(case, before, server, rows, "then")


def learns_in_the_next_stage(case: Case) -> None:
    """After a stage in which nothing moved, the next stage can still learn.

    Args:
      case: what the algorithm is checked with.
    """
    full, server, rows = case.start
    before = slopes(case, server, rows)
    first_rows = case.rows(full)
    server, after = case.stage(full, first_rows, case.fused)
    ups, after = case.trained(server, after, move=0.0)
    server, _ = case.aggregated(server, ups)
    full, rows = case.finished(full, first_rows, server, after, case.fused)
    require_learning(case, before, *case.stage(full, rows, case.identity), "then")


ALGORITHM_LAWS: tuple[Callable[[Case], None], ...] = (
    *QUICK_LAWS,
    is_pure,
    ignores_order,
    needs_one_client,
    updates_arrive,
    stays_when_nothing_moves,
    learns_on,
    learns_in_the_next_stage,
    views_the_stage,
    returns_through_the_identity,
    keeps_absent_layers,
    carries_rows,
)
"""The laws of an algorithm, in the order in which they are checked."""
