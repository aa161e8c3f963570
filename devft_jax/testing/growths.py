"""The laws of a growth, each as a function of a `GrowthCase`."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.developmental import FixedGrowth, Growth, LayerGrams, LayerMap, NamedGrowth, StageShape
from devft_jax.developmental.growths import GrowthOptions
from devft_jax.developmental.maps import check_layer_map
from devft_jax.models.base import init_base
from devft_jax.models.lora import init_lora
from devft_jax.storage.records import RoundRecord
from devft_jax.testing.algorithms import check_law
from devft_jax.testing.laws import LawError, difference, require
from devft_jax.testing.rounds import TINY

ROUNDS = 1000
"""Rounds of the run in the checks."""


def check_growth(
    growth: Growth | NamedGrowth | Callable[[Any, int], Growth], *, num_layers: int = 8, stages: int = 4, quick: bool = False
) -> None:
    """Raise `LawError` unless a growth keeps the laws of `GROWTH_LAWS`.

    Args:
      growth: the growth to check; or a `NamedGrowth` or a function (options, num_layers) that creates it, which is called
        with the default options.
      num_layers: L, the depth of the model in the checks.
      stages: number of maps requested from a growth that does not announce its stages in advance.
      quick: only the laws that need no map, which `train` checks on objects that are passed to it.

    Raises:
      LawError: a law is violated; names the law and the values found.
    """
    if isinstance(growth, NamedGrowth):
        growth = growth.make
    if inspect.isfunction(growth):
        growth = growth(GrowthOptions(), num_layers)
    name = type(growth).__qualname__
    if not isinstance(growth, Growth):
        raise LawError(f"{name} breaks the law 'It is a Growth.' Let its class inherit from devft_jax.developmental.Growth.")
    case = GrowthCase(growth, num_layers, stages)
    for law in QUICK_LAWS if quick else GROWTH_LAWS:
        check_law(name, law, case)


@dataclasses.dataclass(frozen=True)
class GrowthCase:
    """The growth and the model with which it is checked.

    Attributes:
      given: the growth as it was passed.
      num_layers: L.
      stages: number of maps requested from a growth that does not announce its stages.
    """

    given: Growth
    num_layers: int
    stages: int

    @functools.cached_property
    def ready_growth(self) -> Growth:
        """The growth, prepared if it needs that: the influence falls from the first layer to the last."""
        if self.given.measured:
            return self.given
        return self.given.prepared(lambda kind="influence": made_up(kind, self.num_layers))

    @functools.cached_property
    def tree(self) -> Any:
        """(blocks, LoRA) of random weights, every leaf `[L, ...]`."""
        model = TINY.with_layers(self.num_layers)
        adapter = init_lora(jax.random.key(1), model, rank=4, alpha=8.0, targets=("q", "v"), dropout=0.0)
        return init_base(jax.random.key(0), model).blocks, adapter.lora

    @functools.cached_property
    def maps(self) -> list[LayerMap | None]:
        """Its maps in the order of stages, up to None or to the requested number."""
        announced = self.ready_growth.depths(self.num_layers)
        maps: list[LayerMap | None] = []
        while len(maps) < (self.stages if announced is None else len(announced) + 1):
            maps.append(self.ask(len(maps), self.history(maps)))
            if maps[-1] is None:
                break
        return maps

    def history(self, maps: Sequence[Any]) -> list[RoundRecord]:
        """Records of two rounds for every stage so far, in which the loss falls.

        Args:
          maps: maps of the stages so far.
        """
        return [
            _record(2 * stage + each, stage, layer_map.num_groups)
            for stage, layer_map in enumerate(maps)
            if isinstance(layer_map, LayerMap)
            for each in (1, 2)
        ]

    def ask(self, stage: int, history: Sequence[Any]) -> LayerMap | None:
        """The growth's map of a stage.

        Args:
          stage: from 0.
          history: the records so far.
        """
        return self.ready_growth.next(stage, self.tree, history, self.key(stage))

    def key(self, stage: int) -> jax.Array:
        """The key of a stage.

        Args:
          stage: from 0.
        """
        return jax.random.fold_in(jax.random.key(5, impl="threefry2x32"), stage)


def made_up(kind: str, num_layers: int) -> np.ndarray:
    """A measurement of layers: f32[L] that falls from the first to the last, or a similarity f32[L, L] of neighbours.

    Args:
      kind: the name of the measurement, as in `Growth.prepared`.
      num_layers: L.
    """
    if kind in ("hidden", "cka"):
        places = np.arange(num_layers, dtype=np.float32)
        return np.exp(-np.abs(places[:, None] - places) / 2)
    return np.linspace(1, 0.1, num_layers, dtype=np.float32)


def _record(number: int, stage: int, layers: int) -> RoundRecord:
    """The record of a round, as a growth sees it in its history."""
    return RoundRecord(
        round=number,
        stage=stage,
        layers=layers,
        loss=4.0 / number,
        client_update_norm=0.1,
        tokens=256,
        seconds=1.0,
        tokens_per_second=256.0,
        bytes_up=1024,
        bytes_down=1024,
        bytes_missed=0,
        train_flops=1,
        program_bytes=1,
        adapter_norms=[0.1] * layers,
        dropped=0,
        clients=[0, 1],
    )


def announcements_agree(case: GrowthCase) -> None:
    """What it announces about its stages is consistent: depths, shapes, and shares that add up to the rounds.

    Args:
      case: the growth to check.
    """
    growth, layers = case.given, case.num_layers
    depths, shapes = growth.depths(layers), growth.shapes(layers)
    if depths is None or shapes is None:
        require(depths is None and shapes is None, f"depths are {depths} and shapes {shapes}.")
    else:
        whole = all(isinstance(depth, int | np.integer) and 1 <= depth <= layers for depth in depths)
        require(depths and whole, f"depths are {depths} of a model of {layers} layers; give numbers from 1 to {layers}.")
        require(all(isinstance(shape, StageShape) for shape in shapes), f"shapes are {shapes}; give a StageShape each.")
        found = tuple(shape.layers for shape in shapes)
        require(tuple(depths) == found, f"depths are {tuple(depths)} and those of shapes {found}.")
    shares = growth.stage_rounds(ROUNDS, layers)
    if shares is not None:
        require(sum(shares) == ROUNDS, f"the shares {tuple(shares)} of {ROUNDS} rounds add up to {sum(shares)}.")
        require(all(share >= 1 for share in shares), f"the shares {tuple(shares)} leave a stage without a round.")
        count = len(shares) if depths is None else len(depths)
        require(len(shares) == count, f"it divides the rounds over {len(shares)} stages but announces {count}.")


def fixed_maps_fit(case: GrowthCase) -> None:
    """Maps that depend only on the depth of the model fit it.

    Those of a growth that measures the layers first are checked where they are chosen.

    Args:
      case: the growth to check.
    """
    if isinstance(case.given, FixedGrowth) and case.given.measured:
        for stage in range(len(case.given.shapes(case.num_layers))):
            _require_fit(stage, case.given.stage_map(stage, case.num_layers), case.num_layers)


def prepares_itself(case: GrowthCase) -> None:
    """If it needs to be prepared, the result is a growth that asks for its measurement at most once.

    Args:
      case: the growth to check.
    """
    if case.given.measured:
        return
    asked = []

    def measure(kind: str = "influence") -> np.ndarray:
        asked.append(True)
        return made_up(kind, case.num_layers)

    ready = case.given.prepared(measure)
    require(isinstance(ready, Growth), f"prepared returns a {type(ready).__name__}; return a growth.")
    ready.prepared(measure)
    require(len(asked) <= 1, f"it asks for its measurement {len(asked)} times; keep the first answer.")


def gives_maps(case: GrowthCase) -> None:
    """Every map is a map of the model's layers, and there is at least one.

    Args:
      case: the growth to check.
    """
    for stage, layer_map in enumerate(case.maps):
        if layer_map is not None:
            _require_fit(stage, layer_map, case.num_layers)
    require(case.maps[0] is not None, "there is none in stage 0.")


def follows_its_announcements(case: GrowthCase) -> None:
    """Its maps have the shapes that it announces, and it ends after them.

    Args:
      case: the growth to check.
    """
    shapes = case.ready_growth.shapes(case.num_layers)
    if shapes is None:
        return
    maps = [layer_map for layer_map in case.maps if layer_map is not None]
    require(len(maps) == len(shapes), f"it announces {len(shapes)} stages but gives {len(maps)} maps or more.")
    for stage, (layer_map, announced) in enumerate(zip(maps, shapes, strict=True)):
        found = StageShape.of(layer_map)
        # If the weights choose the layers, only the map itself shows whether rows select single layers.
        announced = dataclasses.replace(announced, picks=announced.picks or found.picks)
        require(found == announced, f"stage {stage} is {found} but was announced as {announced}.")


def classes_hold_what_they_say(case: GrowthCase) -> None:
    """The parts that classes of clients hold fit the model and what is announced: as many layers, of which no more train.

    Args:
      case: the growth to check.
    """
    growth, layers = case.ready_growth, case.num_layers
    maps = [layer_map for layer_map in case.maps if layer_map is not None]
    draws = np.random.default_rng(0).uniform(size=(4, layers))
    for stage in range(len(maps)):
        for index, shape in enumerate(growth.classes(stage, layers)):
            chances = growth.inclusion(index, stage, layers)
            require(chances.shape == (layers,), f"inclusion of class {index} has shape {chances.shape}; give f64[{layers}].")
            for own in draws if shape.drawn else [None]:
                held = growth.class_map(index, stage, layers, maps[: stage + 1], own)
                _require_fit(stage, held, layers)
                found = StageShape.of(held)
                agree = (found.layers, found.bare) == (shape.layers, shape.bare)
                agree = agree and found.trained <= shape.trained and found.frozen >= shape.frozen
                require(agree, f"class {index} of stage {stage} is {found} but was announced as {shape}.")


def depends_on_its_arguments_alone(case: GrowthCase) -> None:
    """Its result depends only on its arguments.

    Args:
      case: the growth to check.
    """
    for stage in reversed(range(len(case.maps))):
        again = case.ask(stage, case.history(case.maps[:stage]))
        _require_same(again, case.maps[stage], f"stage {stage} asked again, after later ones,")


def reads_inner_products(case: GrowthCase) -> None:
    """From inner products it gives the same map as from weights.

    Args:
      case: the growth to check.
    """
    for stage, layer_map in enumerate(case.maps):
        history = case.history(case.maps[:stage])
        found = case.ready_growth.from_grams(stage, LayerGrams(case.tree), history, case.key(stage))
        _require_same(found, layer_map, f"from_grams of stage {stage}")


def _require_fit(stage: int, layer_map: LayerMap | None, num_layers: int) -> None:
    """Raise `LawError` unless a map describes a submodel of a model of this depth."""
    try:
        check_layer_map(layer_map, num_layers)
    except ValueError as error:
        raise LawError(f"in stage {stage}, {error}") from None


def _require_same(found: LayerMap | None, wanted: LayerMap | None, what: str) -> None:
    """Raise `LawError` unless two results are the same."""
    if found is None or wanted is None:
        require(found is wanted, f"{what} is {found} and was {wanted}.")
        return
    apart = difference(*(jax.tree.map(jnp.asarray, dataclasses.replace(each, align=False)) for each in (found, wanted)))
    require(apart <= 1e-6, f"{what} gives a different map.")


QUICK_LAWS: tuple[Callable[[GrowthCase], None], ...] = (announcements_agree, fixed_maps_fit)
GROWTH_LAWS: tuple[Callable[[GrowthCase], None], ...] = (
    *QUICK_LAWS,
    prepares_itself,
    gives_maps,
    follows_its_announcements,
    classes_hold_what_they_say,
    depends_on_its_arguments_alone,
    reads_inner_products,
)
"""The laws of a growth, in the order in which they are checked."""
