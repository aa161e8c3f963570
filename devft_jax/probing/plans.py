"""Plans: growths with options, and the submodels that they make of the untuned model.

    GROWTH                      a growth of `devft list`, or package.module:name
    GROWTH:option=value:...     with options of single growths, as in the arms of `devft compare`

The growth itself chooses its submodels, from the same weights, measurements and keys as in a run of the same seed, so that
those of the first stage are the run's own. Later stages of a run are chosen from a tuned adapter, these from the first one.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from devft_jax.comparing.arms import method_and_options, value_of
from devft_jax.config.effects import unread, with_value
from devft_jax.config.methods import growth_of, known_method
from devft_jax.config.run_config import RunConfig
from devft_jax.developmental import Growth, LayerGrams, LayerMap, ProgFed
from devft_jax.developmental.growths import OPTIONS
from devft_jax.developmental.maps import check_layer_map
from devft_jax.developmental.options import CapacityOptions, TextOptions
from devft_jax.errors import InputError
from devft_jax.federated.sampling import Purpose, run_key
from devft_jax.options import check_options, own_fields

SETTABLE = {field.name for group in OPTIONS if group not in (CapacityOptions, TextOptions) for field in own_fields(group)}
"""Options that a plan may set: those of single growths, but not their stages, which are the probe's depths, nor the text on
which layers are measured, which is the same for all plans."""

MOST_STAGES = 1000
"""Most submodels of one plan."""


@dataclass(frozen=True)
class Plan:
    """One way to choose submodels.

    Attributes:
      text: as the user wrote it.
      config: the configuration of a run that has this growth with these options.
    """

    text: str
    config: RunConfig


@dataclass(frozen=True)
class Submodel:
    """A submodel of a plan.

    Attributes:
      plan: the plan.
      layer_map: how it is made from the model, and what of it trains.
    """

    plan: Plan
    layer_map: LayerMap


def parse_plan(text: str, config: RunConfig) -> Plan:
    """Parse a plan.

    Args:
      text: in the notation of the module's docstring.
      config: gives the options that the plan does not set.

    Raises:
      InputError: there is no such growth, or an option has another form, a value that it cannot have, or no effect.
    """
    name, options = method_and_options(text)
    values: dict[str, Any] = {}
    for each in options:
        option, equals, value = each.partition("=")
        option = option.replace("-", "_")
        if not equals or not value:
            raise InputError(f"the plan '{text}' has the option '{each}'; write it as option=value.")
        if option not in SETTABLE:
            raise InputError(
                f"the plan '{text}' sets '{option}', which is no option of a growth's submodels; set one of "
                f"{', '.join(sorted(SETTABLE))}."
            )
        with _naming(text):
            values[option] = value_of(option, value)
    with _naming(text):
        made = dataclasses.replace(config, growth=known_method("growth", name), **values)
        check_options(made)
    idle = unread(made)
    for option in values:
        if option in idle:
            shown = with_value(made, option)
            raise InputError(f"the plan '{text}' sets {shown}, which {idle[option].reason}; leave it out.")
    return Plan(text, made)


@contextlib.contextmanager
def _naming(text: str) -> Iterator[None]:
    """Name the plan in an `InputError` raised inside the block."""
    try:
        yield
    except InputError as error:
        raise InputError(f"the plan '{text}' cannot be made: {error}") from error


def submodels(
    plan: Plan, depths: Sequence[int], grams: LayerGrams, measure: Callable[..., np.ndarray]
) -> Iterator[Submodel]:
    """The submodels of a plan.

    Args:
      plan: the plan.
      depths: numbers of layers, ascending; a user-defined growth may have its own.
      grams: inner products between the layers of the untuned model.
      measure: (configuration, name of a measurement) -> what `Growth.prepared` gets, if the growth asks for it.

    Raises:
      InputError: the growth cannot make them.
    """
    config = dataclasses.replace(plan.config, capacities=tuple(depths))
    growth = growth_of(config, grams.num_layers)
    if isinstance(growth, ProgFed):
        # Its option for depths is the number of stages, in equal steps.
        growth = dataclasses.replace(growth, capacities=tuple(depths))
    if not growth.measured:
        growth = growth.prepared(functools.partial(measure, config))
    for stage in range(MOST_STAGES):
        layer_map = _stage_map(plan, growth, stage, grams)
        if layer_map is None:
            return
        yield Submodel(plan, layer_map)


def _stage_map(plan: Plan, growth: Growth, stage: int, grams: LayerGrams) -> LayerMap | None:
    key = jax.random.fold_in(run_key(plan.config.seed, Purpose.GROWTH), stage)
    try:
        layer_map = growth.from_grams(stage, grams, (), key)
        if layer_map is not None:
            check_layer_map(layer_map, grams.num_layers)
    except ValueError as error:
        raise InputError(f"stage {stage + 1} of the plan '{plan.text}' cannot be made: {error}") from error
    return layer_map


def map_key(layer_map: LayerMap) -> tuple[bytes | int, ...]:
    """A key that equal maps share.

    Args:
      layer_map: a concrete map.
    """
    arrays = (np.asarray(layer_map.fuse), np.asarray(layer_map.assign), np.asarray(layer_map.train))
    return (*(array.tobytes() for array in arrays), layer_map.bare)
