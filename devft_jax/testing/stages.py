"""The laws of an algorithm at a stage change, each as a function of a `Case`."""

import dataclasses

import jax
import numpy as np

from devft_jax.testing.laws import difference, effect, effect_difference, require
from devft_jax.testing.rounds import Case

EXACT = 1e-4
"""Largest allowed difference between two float32 computations of the same value through decompositions."""


def views_the_stage(case: Case) -> None:
    """The view is an adapter of the stage's depth.

    Args:
      case: what the algorithm is checked with.
    """
    full = case.full()
    for layer_map in (case.identity, case.fused):
        server, _ = case.stage(full, case.rows(full), layer_map)
        depth = case.algorithm.view(server).depth(otherwise=layer_map.num_groups)
        require(depth == layer_map.num_groups, f"that of a stage of {layer_map.num_groups} layers has {depth}.")


def returns_through_the_identity(case: Case) -> None:
    """After a stage of the full model the full-depth state has what it learned, and the next stage begins there.

    Args:
      case: what the algorithm is checked with.
    """
    algorithm, (full, server, rows) = case.algorithm, case.start
    server, after = case.after_rounds(server, rows)
    first_rows = case.rows(full)
    for mode in ("delta", "copy"):
        apart = effect_difference(
            algorithm.view(algorithm.transfer(full, server, case.identity, mode)), algorithm.view(server)
        )
        require(apart <= EXACT, f"the model changes by {apart:.3g} in transfer of mode {mode}.")
    full, rows = case.finished(full, first_rows, server, after, case.identity)
    again, _ = case.stage(full, rows, case.identity)
    apart = effect_difference(algorithm.view(again), algorithm.view(server))
    require(apart <= EXACT, f"the next stage's model differs by {apart:.3g}.")


def keeps_absent_layers(case: Case) -> None:
    """Layers that are absent or do not train stay unchanged, and the others learn.

    Args:
      case: what the algorithm is checked with.
    """
    algorithm, (full, server, rows) = case.algorithm, case.start
    if not algorithm.layered:
        return
    server, after = case.after_rounds(server, rows)
    full, rows = case.finished(full, case.rows(full), server, after, case.identity)
    learn = np.array([True, False])
    layer_map = dataclasses.replace(case.fused, train=jax.numpy.asarray(learn))
    server, stage_rows = case.stage(full, rows, layer_map)
    server, _ = case.after_rounds(server, stage_rows, learn=learn)
    views = [algorithm.view(state) for state in (full, algorithm.transfer(full, server, layer_map, "copy"))]
    before, returned = map(effect, views)
    for name, old in before.items():
        kept = np.abs(returned[name][2:] - old[2:]).max()
        require(kept == 0, f"{name} of a layer that is absent or does not train changes by {kept:.3g}.")
    if algorithm.has_global_model:
        # The leaves are compared: if clients keep a factor themselves, the server's own view computes nothing.
        leaves = zip(*(jax.tree.leaves((view.lora, view.delta)) for view in views), strict=True)
        changes = [np.abs(np.asarray(new) - np.asarray(old))[:2].max(axis=(1, 2)) for old, new in leaves]
        require((np.max(changes, axis=0) > 1e-5).all(), "a layer that trains in the stage is what it was before.")


def carries_rows(case: Case) -> None:
    """A client's row passes through a stage: its shape is the stage's, and its own model is that of its layers' groups.

    Args:
      case: what the algorithm is checked with.
    """
    algorithm, full = case.algorithm, case.full()
    rows = case.rows(full)
    server, stage_rows = case.stage(full, rows, case.fused)
    _, moved = case.trained(server, stage_rows)
    deep, after = case.finished(full, rows, server, moved, case.fused)
    require(difference(jax.tree.map(np.zeros_like, rows), jax.tree.map(np.zeros_like, after)) == 0, "its shape changes.")
    if algorithm.personal is None:
        return
    small, own = (effect(algorithm.personal(state, case.row(each))) for state, each in ((server, moved), (deep, after)))
    for name, added in small.items():
        apart = np.abs(own[name][:3] - added[[0, 0, 1]]).max()
        require(apart <= EXACT, f"{name} of the client's own model differs by {apart:.3g} from its group's.")
