"""A run's configuration: the options of all option groups and methods in one flat, frozen dataclass.

Field names are flat and unique, so that `RunConfig(growth="devft", rounds=40)` in Python, `--growth devft --rounds 40` on
the command line and `growth: devft` in a YAML file mean the same. `devft_jax.config.validation` checks a configuration
before anything is traced.
"""

import dataclasses
import functools
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from devft_jax.accounting.options import EnergyOptions
from devft_jax.config.execution import ExecutionOptions
from devft_jax.config.methods import METHODS
from devft_jax.config.tracking import TrackingOptions
from devft_jax.config.values import choices_of, convert
from devft_jax.data import DataOptions
from devft_jax.developmental.growths import OPTIONS as OPTIONS_OF_GROWTHS
from devft_jax.developmental.growths import GrowthOptions
from devft_jax.developmental.options import StageOptions
from devft_jax.evaluation.benchmarks import TaskScoreOptions
from devft_jax.evaluation.options import EvaluationOptions
from devft_jax.federated.algorithms import OPTIONS as OPTIONS_OF_ALGORITHMS
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.channels.options import ChannelOptions
from devft_jax.federated.options import FederatedOptions, LearningRateOptions, OptimizerOptions, WarmStartOptions
from devft_jax.fleets.options import FleetOptions
from devft_jax.models.options import LoraOptions, QuantizationOptions
from devft_jax.options import (
    execution,
    option,
    own_fields,
    path,
)


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """The model, the seed and the run's folder."""

    model: str = path("bundled")
    """Frozen base model: a Hugging Face folder or name, or bundled for the small LLaMA model that comes with the package."""
    seed: int = option(0, within="[0, 2^32)")
    """Seed of initialisation, cohorts, data order, dropout and k-means."""
    out: str | None = execution(None, path=True)
    """The run's folder: absent, empty, or of this same run; any other folder is refused and not changed. By default a folder
    under runs/ named after the configuration."""
    checkpoint_every: int = execution(10, at_least=1)
    """Rounds between checkpoints; a stopped run resumes from the last checkpoint."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(
    JobOptions,
    DataOptions,
    QuantizationOptions,
    GrowthOptions,
    MethodConfig,
    WarmStartOptions,
    LearningRateOptions,
    OptimizerOptions,
    FleetOptions,
    EvaluationOptions,
    TaskScoreOptions,
    ExecutionOptions,
    EnergyOptions,
    TrackingOptions,
):
    """Everything that describes a run; see the dataclasses of the option groups for the fields."""

    def __new__(cls, **options: Any) -> Self:
        """Record which options were passed."""
        made = super().__new__(cls)
        object.__setattr__(made, "_given", frozenset(options))
        return made

    def __post_init__(self) -> None:
        """Write names of methods in their canonical case."""
        for name in field_types():
            object.__setattr__(self, name, _in_known_case(name, getattr(self, name)))

    @property
    def given(self) -> frozenset[str]:
        """The options that were passed; empty if all were copied, as by `dataclasses.replace`, because then it is not known
        which of them are meant for this run."""
        given: frozenset[str] = getattr(self, "_given")  # noqa: B009
        return given if len(given) < len(dataclasses.fields(self)) else frozenset()

    def with_given(self, names: Iterable[str]) -> Self:
        """The same options, with another record of which ones were given.

        Args:
          names: names of the given options.
        """
        made = dataclasses.replace(self)
        object.__setattr__(made, "_given", frozenset(names))
        return made


OPTION_GROUPS: tuple[type, ...] = (
    JobOptions,
    DataOptions,
    QuantizationOptions,
    LoraOptions,
    WarmStartOptions,
    StageOptions,
    *OPTIONS_OF_GROWTHS,
    FederatedOptions,
    ChannelOptions,
    *OPTIONS_OF_ALGORITHMS,
    LearningRateOptions,
    OptimizerOptions,
    FleetOptions,
    EvaluationOptions,
    TaskScoreOptions,
    ExecutionOptions,
    EnergyOptions,
    TrackingOptions,
)
"""The dataclasses that declare the options of a run."""

NAMES = tuple(field.name for group in OPTION_GROUPS for field in own_fields(group))
"""The names of all options, group by group."""

if sorted(NAMES) != sorted(field.name for field in dataclasses.fields(RunConfig)):
    # Inheritance would silently merge options of the same name in two groups.
    raise TypeError(f"two groups share an option name, or a group is missing: {sorted(NAMES)}")


@functools.cache
def field_types() -> dict[str, Any]:
    """The type annotation of every field of `RunConfig`."""
    return typing.get_type_hints(RunConfig)


def option_value(name: str, value: Any, *, exact: bool = False) -> Any:
    """The value of one option, converted from a plain value or text; see `devft_jax.config.values.convert`.

    Args:
      name: name of the option.
      value: a plain value, or text.
      exact: whether text is taken literally.

    Raises:
      InputError: the value does not have the option's type.
    """
    found = convert(name, value, field_types()[name], exact=exact)
    return _in_known_case(name, found)


def _in_known_case(name: str, value: Any) -> Any:
    """An option's value, with names of the package's own methods in their canonical case."""
    if isinstance(value, tuple):
        return tuple(_in_known_case(name, each) for each in value)
    if not isinstance(value, str):
        return value
    declared = RunConfig.__dataclass_fields__[name].metadata.get("choices", METHODS.get(name, ()))
    by_case = {each.lower(): each for each in (*declared, *choices_of(field_types()[name]))}
    return by_case.get(value.lower(), value)
