"""Growth of a model over stages: which submodel trains in which stage.

A growth has one method. At the beginning of stage s, and with `stage_end` gain also during the stage before it, the trainer
calls `next(s, tree, history, key)` and gets the stage's `LayerMap`, or None if there is no further stage. A rule that
depends on the history, a fixed selection and ProgFed's prefixes are all growths. One that trains the first 4 of 16 layers
and then, if the loss falls, the first 8:

    class Prefixes(Growth):
        def next(self, stage, tree, history, key):
            if stage == 2 or (stage == 1 and history[-1].loss > history[0].loss):
                return None
            depth = (4, 8)[stage]
            layers = jnp.arange(16)
            return LayerMap(jnp.eye(depth, 16), jnp.where(layers < depth, layers, -1))

Every other method of `Growth` has a default. A growth that knows its stages in advance overrides `depths` or `shapes`, so
that a run can be planned and the next stage's programs compiled ahead. Two base classes are shorter to use where they fit:
`GramGrowth` reads the weights only through inner products, `FixedGrowth` only the depth of the model.

The package's own growths are in `devft_jax.developmental.growths`.
"""

import abc
import difflib
import functools
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from devft_jax.developmental.classes import ClassShape
from devft_jax.developmental.maps import LayerMap
from devft_jax.developmental.schedule import equal_shares
from devft_jax.developmental.similarity import LayerGrams, Select, similarity_from_gram
from devft_jax.developmental.stage_shape import StageShape

# Names at least this similar are taken for a misspelling: `depth` and `depths` (0.91), `prepare` and `prepared` (0.93),
# `dephts` (0.83); not `selection` and `select` (0.80).
_MISSPELT = 0.82

# A fixed growth that announces more stages than this never ends.
_MOST_STAGES = 1000


class Growth(abc.ABC):
    """Chooses the submodel of every stage.

    A subclass must write `next`; by overriding other methods it gives a trainer more information. A public method or
    property with a name similar to one of these is an error when the class is created, so that a misspelt `depth` is not
    silently ignored. Names that begin with an underscore are not checked.
    """

    @abc.abstractmethod
    def next(self, stage: int, tree: Any, history: Sequence[Any], key: jax.Array) -> LayerMap | None:
        """The map of this stage, or None if training is finished.

        Must depend only on its arguments: a resumed run creates a new object and calls it only for the later stages, and
        `stage_end` gain calls it for the next stage while one trains.

        Args:
          stage: 0, 1, ...
          tree: (base blocks, LoRA) at full depth, every leaf `[L, ...]`; packed weights have `dequantize`.
          history: the records of all rounds so far, oldest first, each with its `stage`, `layers`, `loss` and more.
          key: random key, derived from the run's seed and the stage.

        Returns:
          A map from the tree's L layers, see `check_layer_map`.
        """

    def from_grams(self, stage: int, grams: LayerGrams, history: Sequence[Any], key: jax.Array) -> LayerMap | None:
        """The map of this stage from the inner products between layers, if the caller has them; by default calls `next`.

        Args:
          stage: as in `next`.
          grams: the inner products, measured on first use; `grams.tree` are the weights.
          history: as in `next`.
          key: as in `next`.

        Returns:
          The result of `next`.
        """
        return self.next(stage, grams.tree, history, key)

    def depths(self, num_layers: int) -> tuple[int, ...] | None:
        """The rows G of every stage's map, in advance; by default those of `shapes`, or None if that is not overridden.

        Args:
          num_layers: L, the depth of the model.

        Returns:
          One number per stage, or None if they depend on weights or losses.
        """
        shapes = None if type(self).shapes is Growth.shapes else self.shapes(num_layers)
        return None if shapes is None else tuple(shape.layers for shape in shapes)

    def shapes(self, num_layers: int) -> tuple[StageShape, ...] | None:
        """The shape of every stage, in advance; by default that of submodels with `depths` fused layers that all learn.

        Args:
          num_layers: L, the depth of the model.

        Returns:
          One shape per stage, or None if they depend on weights or losses.
        """
        depths = self.depths(num_layers)
        return None if depths is None else tuple(StageShape(depth, depth, picks=depth == num_layers) for depth in depths)

    def stage_rounds(self, rounds: int, num_layers: int) -> tuple[int, ...] | None:
        """How this growth divides a run's rounds over its stages; by default equally over the stages of `depths`.

        Args:
          rounds: rounds of the whole run.
          num_layers: L, the depth of the model.

        Returns:
          Rounds of every stage, which add up to `rounds`; None if the stages are not known in advance: the run's
            configuration then has to give them.

        Raises:
          ValueError: there are fewer rounds than stages.
        """
        depths = self.depths(num_layers)
        return None if depths is None else equal_shares(rounds, len(depths))

    def classes(self, stage: int, num_layers: int) -> tuple[ClassShape, ...]:
        """The classes of clients that hold different parts of the model; by default none: all hold the stage's map.

        With classes the server's state stays at full depth, and what a client returns is added to the layers that it held
        (`devft_jax.federated.holders`).

        Args:
          stage: 0, 1, ...
          num_layers: L, the depth of the model.

        Returns:
          One shape per class, the weakest devices' first; as many in every stage.
        """
        return ()

    def class_map(
        self, index: int, stage: int, num_layers: int, maps: Sequence[LayerMap], draws: np.ndarray | None
    ) -> LayerMap:
        """The part of the model that a client of a class holds in a round; only for a growth that has `classes`.

        Args:
          index: number of the class, from 0.
          stage: 0, 1, ...
          num_layers: L, the depth of the model.
          maps: the results of `next` in all stages so far.
          draws: f64[L], uniform in (0, 1), of the client and round; None for a class whose shape is not `drawn`.

        Raises:
          NotImplementedError: the growth has no classes.
        """
        raise NotImplementedError(f"{type(self).__qualname__} has no classes of clients.")

    def inclusion(self, index: int, stage: int, num_layers: int) -> np.ndarray:
        """The probability with which a client of a class trains each layer, f64[L]; by default 1.

        Args:
          index: number of the class, from 0.
          stage: 0, 1, ...
          num_layers: L, the depth of the model.
        """
        return np.ones(num_layers)

    @property
    def measured(self) -> bool:
        """Whether this growth can choose without calling `prepared`; by default True unless `prepared` is overridden."""
        return type(self).prepared is Growth.prepared

    def prepared(self, measure: Callable[..., np.ndarray]) -> "Growth":
        """This growth with the measurements of layers that it needs; called before every stage unless `measured`.

        Args:
          measure: () -> f32[L], the block influence of the base's layers on public text; ("hidden") or ("cka") -> f32[L, L],
            the similarity of their outputs (`devft_jax.developmental.measures`); ("fisher") -> f32[L], their Fisher
            information. Measured once per run and then stored.

        Returns:
          The growth to use from now on; by default this one.
        """
        return self

    @property
    def select(self) -> Select | None:
        """Predicate on leaf paths that restricts which leaves the logged similarity compares (Eq. 1); by default all
        leaves."""
        return None

    @property
    def logged_laplacian(self) -> str:
        """The Laplacian whose spectrum is logged, a member of `LAPLACIANS`; by default that of Eq. 3."""
        return "paper"

    def logged_similarity(self, grams: LayerGrams) -> jax.Array:
        """The logged similarity of layers, f32[L, L]; by default Eq. 1 over what `select` restricts it to.

        Args:
          grams: inner products between the layers.
        """
        return similarity_from_gram(grams.gram(self.select))

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Refuse a class with a misspelt method.

        Raises:
          TypeError: a name is similar to one of a growth's methods, or a method's name is used for something else.
        """
        super().__init_subclass__(**arguments)
        _check_names(cls)


_METHODS = (
    *("next", "from_grams", "depths", "shapes", "stage_rounds", "prepared", "logged_similarity"),
    *("classes", "class_map", "inclusion"),
)
_PROPERTIES = ("measured", "select", "logged_laplacian")
_FUNCTIONS = (types.FunctionType, classmethod, staticmethod, functools.partialmethod)


def _check_names(cls: type[Growth]) -> None:
    """Raise TypeError for a member of a new class that is, or was meant to be, a method of a growth and does not work as
    one.

    Methods and properties are compared with all names of a growth; plain attributes and dataclass fields, such as a field
    `depth`, only with those names that may be attributes.
    """
    fields = inspect.get_annotations(cls)
    inherited = {name for base in cls.__bases__ for name in dir(base)}
    for name, member in {**dict.fromkeys(fields), **vars(cls)}.items():
        is_method = name not in fields and not isinstance(member, property) and isinstance(member, _FUNCTIONS)
        if name in _METHODS and not is_method:
            raise TypeError(
                f"{cls.__qualname__}.{name} is a method of every growth: write it as one, or rename the attribute."
            )
        if name == "measured" and is_method:
            raise TypeError(f"{cls.__qualname__}.measured is a property of every growth: decorate it with @property.")
        if name.startswith("_") or name in inherited:
            continue
        known = (*_METHODS, *_PROPERTIES) if is_method or isinstance(member, property) else _PROPERTIES
        if meant := difflib.get_close_matches(name.lower(), known, n=1, cutoff=_MISSPELT):
            raise TypeError(
                f"{cls.__qualname__}.{name} is not part of a growth: rename it {meant[0]} if that is meant, or _{name} if "
                "it is your own."
            )


class GramGrowth(Growth):
    """A growth that reads the weights only through their inner products, which are then computed once for all uses."""

    @abc.abstractmethod
    def from_grams(self, stage: int, grams: LayerGrams, history: Sequence[Any], key: jax.Array) -> LayerMap | None:
        """See `Growth.from_grams`; to be written instead of `next`."""

    def next(self, stage: int, tree: Any, history: Sequence[Any], key: jax.Array) -> LayerMap | None:
        """See `Growth.next`."""
        return self.from_grams(stage, LayerGrams(tree), history, key)


class FixedGrowth(GramGrowth):
    """A growth whose maps depend only on the depth of the model."""

    @abc.abstractmethod
    def stage_map(self, stage: int, num_layers: int) -> LayerMap | None:
        """The map of a stage.

        Args:
          stage: 0, 1, ...
          num_layers: L, the depth of the model.

        Returns:
          The map; None after the last stage.

        Raises:
          ValueError: the growth does not fit the model.
        """

    def from_grams(self, stage: int, grams: LayerGrams, history: Sequence[Any], key: jax.Array) -> LayerMap | None:
        """See `Growth.from_grams`; reads no weights."""
        return self.stage_map(stage, grams.num_layers)

    def shapes(self, num_layers: int) -> tuple[StageShape, ...]:
        """See `Growth.shapes`; the shapes of `stage_map`.

        Raises:
          ValueError: `stage_map` never returns None.
        """
        shapes: list[StageShape] = []
        while (found := self.stage_map(len(shapes), num_layers)) is not None:
            shapes.append(StageShape.of(found))
            if len(shapes) > _MOST_STAGES:
                raise ValueError(f"stage_map gives more than {_MOST_STAGES} maps: return None after the last stage.")
        return tuple(shapes)
