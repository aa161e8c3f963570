"""The laws of a growth, each one function of a `Grown`."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.developmental import Growth, LayerGrams, LayerMap, StageShape
from devft_jax.developmental.layer_map import check_layer_map
from devft_jax.models.base import init_base
from devft_jax.models.lora import init_lora
from devft_jax.storage.records import RoundRecord
from devft_jax.testing.algorithms import kept
from devft_jax.testing.laws import LawError, difference, require
from devft_jax.testing.rounds import TINY

ROUNDS = 1000
"""Of a run whose shares are asked for."""


def check_growth(growth: Growth, *, num_layers: int = 8, stages: int = 4, quick: bool = False) -> None:
    """Raise `LawError` unless a growth keeps the laws of `GROWTH_LAWS`.

    Args:
      growth: what to check.
      num_layers: L, the depth of the model that it is asked about.
      stages: how many maps it is asked for where it does not tell its stages in advance.
      quick: only the laws that ask for no map, which `train` asserts of objects that it is given.

    Raises:
      LawError: a law does not hold; names it, and what was found.
    """
    name = type(growth).__qualname__
    if not isinstance(growth, Growth):
        raise LawError(f"{name} breaks the law 'It is a Growth.' Let its class inherit from devft_jax.developmental.Growth.")
    case = Grown(growth, num_layers, stages)
    for law in QUICK_LAWS if quick else GROWTH_LAWS:
        kept(name, law, case)


@dataclasses.dataclass(frozen=True)
class Grown:
    """What a growth is checked with.

    Attributes:
      given: the growth as it was given.
      num_layers: L.
      stages: how many maps it is asked for where it does not tell its stages.
    """

    given: Growth
    num_layers: int
    stages: int

    @functools.cached_property
    def ready_growth(self) -> Growth:
        """The growth, prepared where it wants to be: the influence falls from the first layer to the last."""
        if self.given.measured:
            return self.given
        return self.given.prepared(lambda: np.linspace(1, 0.1, self.num_layers, dtype=np.float32))

    @functools.cached_property
    def tree(self) -> Any:
        """(blocks, LoRA) of random weights, every leaf `[L, ...]`."""
        model = TINY.with_layers(self.num_layers)
        adapter = init_lora(jax.random.key(1), model, rank=4, alpha=8.0, targets=("q", "v"), dropout=0.0)
        return init_base(jax.random.key(0), model).blocks, adapter.lora

    @functools.cached_property
    def maps(self) -> list[LayerMap | None]:
        """Its answers in the order of stages, up to None or to as many as are asked for."""
        announced = self.ready_growth.depths(self.num_layers)
        maps: list[LayerMap | None] = []
        while len(maps) < (self.stages if announced is None else len(announced) + 1):
            maps.append(self.ask(len(maps), self.history(maps)))
            if maps[-1] is None:
                break
        return maps

    def history(self, maps: Sequence[Any]) -> list[RoundRecord]:
        """Records of two rounds of every stage so far, in which the loss falls.

        Args:
          maps: of the stages so far.
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


def _record(number: int, stage: int, layers: int) -> RoundRecord:
    """The record of a round, as a growth finds it in its history."""
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


def tells_one_thing(case: Grown) -> None:
    """What it tells of its stages in advance agrees: depths, shapes, and shares that add up to the rounds.

    Args:
      case: what the growth is checked with.
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
        require(len(shares) == count, f"it shares rounds over {len(shares)} stages and tells {count}.")


def prepares_itself(case: Grown) -> None:
    """Where it wants to be prepared, it then is a growth that asks for its measure once at most.

    Args:
      case: what the growth is checked with.
    """
    if case.given.measured:
        return
    asked = []

    def measure() -> np.ndarray:
        asked.append(True)
        return np.linspace(1, 0.1, case.num_layers, dtype=np.float32)

    ready = case.given.prepared(measure)
    require(isinstance(ready, Growth), f"prepared gives a {type(ready).__name__}; give a growth.")
    ready.prepared(measure)
    require(len(asked) <= 1, f"it asks for its measure {len(asked)} times; keep the first answer.")


def gives_maps(case: Grown) -> None:
    """Every map is one of the model's layers, and there is one at least.

    Args:
      case: what the growth is checked with.
    """
    for stage, layer_map in enumerate(case.maps):
        if layer_map is not None:
            try:
                check_layer_map(layer_map, case.num_layers)
            except ValueError as error:
                raise LawError(f"in stage {stage}, {error}") from None
    require(case.maps[0] is not None, "there is none in stage 0.")


def keeps_its_word(case: Grown) -> None:
    """Its maps have the shapes that it tells in advance, and it ends after them.

    Args:
      case: what the growth is checked with.
    """
    shapes = case.ready_growth.shapes(case.num_layers)
    if shapes is None:
        return
    maps = [layer_map for layer_map in case.maps if layer_map is not None]
    require(len(maps) == len(shapes), f"it tells {len(shapes)} stages and gives {len(maps)} maps or more.")
    for stage, (layer_map, told) in enumerate(zip(maps, shapes, strict=True)):
        found = StageShape.of(layer_map)
        # Whether rows pick layers is known of the map alone where weights choose it.
        told = dataclasses.replace(told, picks=told.picks or found.picks)
        require(found == told, f"stage {stage} is {found} and was told as {told}.")


def is_a_function(case: Grown) -> None:
    """Its answer depends on its arguments alone.

    Args:
      case: what the growth is checked with.
    """
    for stage in reversed(range(len(case.maps))):
        again = case.ask(stage, case.history(case.maps[:stage]))
        _require_same(again, case.maps[stage], f"stage {stage} asked again, after later ones,")


def reads_inner_products(case: Grown) -> None:
    """From inner products it gives the map that it gives from weights.

    Args:
      case: what the growth is checked with.
    """
    for stage, layer_map in enumerate(case.maps):
        history = case.history(case.maps[:stage])
        found = case.ready_growth.from_grams(stage, LayerGrams(case.tree), history, case.key(stage))
        _require_same(found, layer_map, f"from_grams of stage {stage}")


def _require_same(found: LayerMap | None, wanted: LayerMap | None, what: str) -> None:
    """Raise `LawError` unless two answers are one."""
    if found is None or wanted is None:
        require(found is wanted, f"{what} is {found} and was {wanted}.")
        return
    apart = difference(*(jax.tree.map(jnp.asarray, dataclasses.replace(each, align=False)) for each in (found, wanted)))
    require(apart <= 1e-6, f"{what} gives another map.")


QUICK_LAWS: tuple[Callable[[Grown], None], ...] = (tells_one_thing,)
GROWTH_LAWS: tuple[Callable[[Grown], None], ...] = (
    *QUICK_LAWS,
    prepares_itself,
    gives_maps,
    keeps_its_word,
    is_a_function,
    reads_inner_products,
)
"""The laws of a growth, in the order in which they are checked."""
