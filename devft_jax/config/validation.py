"""Checks of a configuration that are possible before model and data are read.

The options' declarations say which values are allowed; this file checks the relations between options.
"""

import types
import typing
from typing import Any, Literal

from devft_jax.config.execution import validate_execution
from devft_jax.config.methods import METHODS, algorithm_of, imports, known_method
from devft_jax.config.run_config import RunConfig, field_types
from devft_jax.config.values import MOST_ITEMS, readable
from devft_jax.data import validate_data
from devft_jax.developmental.schedule import validate_capacities
from devft_jax.errors import InputError
from devft_jax.federated.options import validate_learning_rate
from devft_jax.fleets.tiers import tiers_or_file
from devft_jax.models.options import validate_quantization
from devft_jax.options import check_options, check_paths

MOST_TRAININGS = 10**7
"""Most client trainings of a run: the sum over rounds of the clients that take part."""


def validate_types(config: RunConfig) -> None:
    """Raise `InputError` for a value of the wrong type, or a list that is too long.

    Args:
      config: the run's configuration.
    """
    for name, annotation in field_types().items():
        value = getattr(config, name)
        if not _matches(value, annotation):
            raise InputError(f"{name} {value!r} is not {readable(annotation)}; correct it.")
        if isinstance(value, tuple) and len(value) > MOST_ITEMS:
            raise InputError(f"{name} has {len(value):,} values; give {MOST_ITEMS:,} or fewer.")


def validate(config: RunConfig) -> None:
    """Raise `InputError` for any error that can be detected before model and data are read.

    Args:
      config: the run's configuration.
    """
    validate_types(config)
    check_paths(config)
    for kind in METHODS:
        known_method(kind, getattr(config, kind))
    check_options(config)
    validate_data(config)
    validate_quantization(config)
    validate_learning_rate(config)
    validate_execution(config)
    if config.fleet is not None:
        tiers_or_file(config.fleet)
    trainings = config.rounds * config.clients_per_round
    if trainings > MOST_TRAININGS:
        raise InputError(
            f"rounds {config.rounds} with clients_per_round {config.clients_per_round} give {trainings:,} trainings of a "
            f"client; use {MOST_TRAININGS:,} or fewer."
        )
    if config.stop_after is not None and not config.evaluate_every:
        raise InputError(
            f"stop_after {config.stop_after} counts rounds without a lower held-out loss, but evaluate_every is 0, so that "
            "no round within a stage is evaluated; give --evaluate-every."
        )
    if config.capacities is not None:
        try:
            validate_capacities(config.capacities)
        except ValueError as error:
            raise InputError(str(error)) from error
        if config.growth == "devft":
            validate_learning_rate(config, len(config.capacities))
    if config.distil_steps and config.model_shards > 1:
        raise InputError(
            f"distil_steps {config.distil_steps} needs the whole base on one device, and model_shards is "
            f"{config.model_shards}; use --model-shards 1, or leave distil_steps out."
        )
    if imports(config.algorithm) or config.channel != "none":
        algorithm_of(config)
    if config.capacity_schedule == "eigengap" and config.growth != "devft":
        raise InputError(f"capacity_schedule 'eigengap' needs growth devft, not {config.growth}; use geometric or linear.")


def _matches(value: Any, annotation: Any) -> bool:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and all(_matches(item, arguments[0]) for item in value)
    if origin is not None:
        return isinstance(value, origin)
    if isinstance(value, bool):
        return annotation is bool
    return isinstance(value, (int, float) if annotation is float else annotation)
