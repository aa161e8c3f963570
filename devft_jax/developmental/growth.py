"""When which submodel: the growth of a model over stages.

A growth is one function. At the start of stage s the trainer asks `next(s, tree, history, key)` and gets
the stage's `LayerMap`, or None when there is no further stage. Nothing else about stages is known to the
trainer, so a rule that reads the history, a fixed selection or ProgFed's prefixes are growths of the same
kind. One that trains the first 4 of 16 layers and then, while the loss falls, the first 8:

    class Prefixes:
        def next(self, stage, tree, history, key):
            if stage == 2 or (stage == 1 and history[-1]["loss"] > history[0]["loss"]):
                return None
            depth = (4, 8)[stage]
            layers = jnp.arange(16)
            return LayerMap(jnp.eye(depth, 16), jnp.where(layers < depth, layers, -1))

`next_stage` asks any growth and measures, in the same single pass over the weights, what the log of a
stage change wants to show. The growths that can be named are in `devft_jax.developmental.growths`.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.developmental.grouping import laplacian_spectrum
from devft_jax.developmental.layer_map import LayerMap, check_layer_map, frozen_below, transition_gap
from devft_jax.developmental.options import GrowthOptions
from devft_jax.developmental.schedule import equal_shares
from devft_jax.developmental.similarity import LayerGrams, similarity_from_gram


class Growth(Protocol):
    """Chooses the submodel of every stage."""

    def next(self, stage: int, tree: Any, history: Sequence[Any], key: jax.Array) -> LayerMap | None:
        """The map of this stage, or None when training is over.

        Called once at the start of each stage, 0, 1, ... `tree` is (base blocks, LoRA) at full depth,
        every leaf `[L, ...]`; `history` holds the records so far, oldest first; `key` depends on the
        seed and the stage. What a growth knows in advance it may tell by further methods, which let a
        trainer plan: `depths(num_layers) -> tuple[int, ...] | None`, the depth of every stage, or
        `shapes(num_layers)`, which says more, see `planned_stages`; `stage_rounds(rounds, num_layers) ->
        tuple[int, ...]`, how it would share out the rounds, see `proposed_rounds`.
        One that chooses by what the layers do, not by their weights, may have `prepared(measure) -> Growth`:
        called before every stage, with a function that gives the block influence f32[L] of the base's layers
        on public text, measured once in a run and then kept. One that has its figures already says so by
        `measured`, true, and is not called.
        """
        ...


@runtime_checkable
class GramGrowth(Protocol):
    """A growth that looks at the weights through their inner products alone.

    Its `next` is `from_grams` of `LayerGrams(tree)`; who holds the grams calls `from_grams` directly.
    """

    def from_grams(self, stage: int, grams: LayerGrams, history: Sequence[Any], key: jax.Array) -> LayerMap | None:
        """The map of this stage, as `next` would give it."""
        ...


@dataclasses.dataclass(frozen=True)
class StageShape:
    """What is known of a stage before weights are read.

    Attributes:
        layers: rows G of the submodel, which have an adapter.
        trained: rows that learn. frozen: rows below the lowest of them, which need no backward pass.
        bare: layers that run below the rows without an adapter.
        picks: whether every row is one layer of the model as it is stored, so that no fused layer need be sent.
    """

    layers: int
    trained: int
    frozen: int = 0
    bare: int = 0
    picks: bool = False

    @property
    def depth(self) -> int:
        """The layers that the submodel runs."""
        return self.layers + self.bare

    @classmethod
    def of(cls, layer_map: LayerMap) -> Self:
        """The shape of a concrete map."""
        train = np.asarray(layer_map.train)
        picks = layer_map.selected() is not None
        return cls(layer_map.num_groups, int(train.sum()), frozen_below(train), layer_map.bare, picks)

    def some_map(self, num_layers: int) -> LayerMap:
        """One of the maps of this shape: what a program is compiled from is the same for all of them."""
        if self.bare:
            some = LayerMap.top(num_layers, self.layers)
        elif self.picks and self.layers == num_layers:
            some = LayerMap.identity(num_layers)
        else:
            assign = np.arange(num_layers, dtype=np.int32) * self.layers // num_layers
            member = assign == np.arange(self.layers)[:, None]
            chosen = member & (np.cumsum(member, axis=1) == 1) if self.picks else member
            some = LayerMap(jnp.asarray(chosen / chosen.sum(axis=1, keepdims=True), jnp.float32), jnp.asarray(assign))
        return dataclasses.replace(some, train=jnp.arange(self.layers, dtype=jnp.int32) >= self.frozen)


class FixedGrowth(abc.ABC):
    """A growth whose maps depend on nothing but the depth of the model."""

    @abc.abstractmethod
    def stage_map(self, stage: int, num_layers: int) -> LayerMap | None:
        """The map of a stage, None beyond the last; ValueError if the growth does not fit the model."""

    def next(self, stage: int, tree: Any, history: Sequence[Any], key: jax.Array) -> LayerMap | None:
        """See `Growth.next`."""
        return self.from_grams(stage, LayerGrams(tree), history, key)

    def from_grams(self, stage: int, grams: LayerGrams, history: Sequence[Any], key: jax.Array) -> LayerMap | None:
        """See `GramGrowth.from_grams`; reads no weights."""
        return self.stage_map(stage, grams.num_layers)

    def depths(self, num_layers: int) -> tuple[int, ...]:
        """The depth of every stage."""
        return tuple(shape.layers for shape in self.shapes(num_layers))

    def shapes(self, num_layers: int) -> tuple[StageShape, ...]:
        """The shape of every stage; see `planned_stages`."""
        shapes: list[StageShape] = []
        while (found := self.stage_map(len(shapes), num_layers)) is not None:
            shapes.append(StageShape.of(found))
        return tuple(shapes)


@dataclasses.dataclass(frozen=True)
class NamedGrowth:
    """A growth as the command line knows it.

    Attributes:
        reference: what it is and where it comes from, in one line.
        message: what travels. state: what is kept between rounds besides the adapter.
        make: (options, layers L of the model) -> the growth; raises ValueError for options that do not fit.
    """

    reference: str
    message: str
    state: str
    make: Callable[[GrowthOptions, int], Growth]


@dataclasses.dataclass(frozen=True, eq=False)
class Transition:
    """A stage's map with what was measured on the weights it was chosen from.

    Attributes:
        layer_map: the map.
        similarity: f32[L, L], Eq. 1 over what the growth compares; None if the map keeps the model's own
            layers, for which no weights are read.
        gap: f32[], `transition_gap` over all parameters; 0 there.
    """

    layer_map: LayerMap
    similarity: jax.Array | None
    gap: jax.Array

    @property
    def spectrum(self) -> jax.Array | None:
        """Eigenvalues of the Laplacian of `similarity`, ascending: f32[L], or None without it."""
        return None if self.similarity is None else laplacian_spectrum(self.similarity)

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Number of layers that every group is assigned."""
        groups = jnp.arange(self.layer_map.num_groups, dtype=jnp.int32)[:, None]
        return tuple((self.layer_map.assign == groups).sum(axis=1).tolist())


def next_stage(growth: Growth, stage: int, tree: Any, history: Sequence[Any], key: jax.Array) -> Transition | None:
    """`growth.next` together with the measurements of a stage change, in one pass over the weights.

    Raises ValueError when the growth gives something else than a `LayerMap` for the tree's layers.
    """
    grams = LayerGrams(tree)
    if isinstance(growth, GramGrowth):
        chosen = growth.from_grams(stage, grams, history, key)
    else:
        chosen = growth.next(stage, tree, history, key)
    if chosen is None:
        return None
    check_layer_map(chosen, grams.num_layers)
    if chosen.runs_base:
        return Transition(chosen, None, jnp.float32(0))
    similarity = similarity_from_gram(grams.gram(getattr(growth, "select", None)))
    return Transition(chosen, similarity, transition_gap(grams.gram(), chosen))


def wants_measure(growth: Growth) -> bool:
    """Whether a growth has its layers measured on text before it can choose: it has `prepared`, and is not `measured`."""
    return hasattr(growth, "prepared") and not getattr(growth, "measured", False)


def planned_depths(growth: Growth, num_layers: int) -> tuple[int, ...] | None:
    """The depth of every stage if the growth announces them through `depths`, else None."""
    announce = getattr(growth, "depths", None)
    return None if announce is None else announce(num_layers)


def planned_stages(growth: Growth, num_layers: int) -> tuple[StageShape, ...] | None:
    """The shape of every stage as far as the growth announces them: its `shapes`, else from its depths, else None."""
    announce = getattr(growth, "shapes", None)
    if announce is not None:
        return announce(num_layers)
    depths = planned_depths(growth, num_layers)
    return None if depths is None else tuple(StageShape(depth, depth, picks=depth == num_layers) for depth in depths)


def proposed_rounds(growth: Growth, rounds: int, num_layers: int) -> tuple[int, ...] | None:
    """How a growth would share out `rounds` over its stages.

    Its own `stage_rounds` if it has that, else equal shares over the depths it announces, else None. Raises ValueError
    when there are fewer rounds than stages.
    """
    propose = getattr(growth, "stage_rounds", None)
    if propose is not None:
        return propose(rounds, num_layers)
    depths = planned_depths(growth, num_layers)
    return None if depths is None else equal_shares(rounds, len(depths))
