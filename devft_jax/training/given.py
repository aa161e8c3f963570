"""Checks of the objects that are passed to `train`, before anything is compiled."""

import types

from devft_jax.config.run_config import RunConfig
from devft_jax.developmental import Growth
from devft_jax.errors import InputError
from devft_jax.federated.algorithm import Algorithm
from devft_jax.models.architecture import ModelConfig
from devft_jax.testing import LawError, check_algorithm, check_growth


def check_kind(name: str, item: object, kind: type, remedy: str) -> None:
    """Raise `InputError` unless an object is an instance of a class.

    Args:
      name: name of the argument.
      item: the object.
      kind: the class.
      remedy: what to pass instead, as an imperative.
    """
    if not isinstance(item, kind):
        raise InputError(f"{name} is {kind_of(item)}, not a {kind.__name__}; {remedy}.")


def check_given_growth(growth: object, num_layers: int) -> None:
    """Raise `InputError` unless an object is a growth whose methods agree with each other, see `devft_jax.testing`.

    Args:
      growth: the object passed to `train`.
      num_layers: L, the depth of the model.
    """
    if not isinstance(growth, Growth):
        raise InputError(
            f"growth is {kind_of(growth)}, not a Growth; pass an instance of a class that inherits from "
            "devft_jax.developmental.Growth, or name one in the configuration."
        )
    try:
        check_growth(growth, num_layers=num_layers, quick=True)
    except LawError as error:
        raise InputError(str(error)) from error


def check_given_algorithm(algorithm: object, model: ModelConfig, config: RunConfig) -> None:
    """Raise `InputError` unless an object is an algorithm that passes the cheap checks of `devft_jax.testing`.

    Args:
      algorithm: the object passed to `train`.
      model: the architecture of the run's model.
      config: the run's configuration.
    """
    if not isinstance(algorithm, Algorithm):
        raise InputError(
            f"algorithm is {kind_of(algorithm)}, not an Algorithm; pass the record that a function such as fedit(config) "
            "returns, or name one in the configuration."
        )
    try:
        check_algorithm(algorithm, model=model, participants=min(2, config.clients_per_round), quick=True)
    except LawError as error:
        raise InputError(str(error)) from error


def kind_of(item: object) -> str:
    """What an object is, for an error message.

    Args:
      item: the object.
    """
    if isinstance(item, type):
        return f"the class {item.__qualname__}"
    if isinstance(item, types.FunctionType):
        return f"the function {item.__qualname__}"
    return f"an object of {type(item).__qualname__}"
