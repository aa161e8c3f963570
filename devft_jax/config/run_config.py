"""A run's configuration: the options of every room in one flat, frozen dataclass; presets; files; identity.

Field names are flat and unique, so that `RunConfig(growth="devft", rounds=40)` in Python, `--growth devft --rounds 40` on
the command line and `growth: devft` in a YAML file say the same. Everything is checked here, before anything is traced.
"""

import dataclasses
import functools
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from devft_jax.accounting.energy import EnergyOptions
from devft_jax.config.execution import ExecutionOptions, validate_execution
from devft_jax.config.methods import METHODS
from devft_jax.config.values import MOST_ITEMS, choices_of, convert, readable
from devft_jax.data import DataOptions, validate_data
from devft_jax.data.sources import named_from_anywhere as data_from_anywhere
from devft_jax.developmental import validate_capacities
from devft_jax.developmental.growths import OPTIONS as OPTIONS_OF_GROWTHS
from devft_jax.developmental.growths import GrowthOptions
from devft_jax.developmental.options import StageOptions
from devft_jax.errors import InputError
from devft_jax.evaluation import EvaluationOptions
from devft_jax.federated.algorithms import OPTIONS as OPTIONS_OF_ALGORITHMS
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.local import OptimizerOptions
from devft_jax.federated.options import FederatedOptions, LearningRateOptions, validate_learning_rate
from devft_jax.files import checked_path, printable, read_yaml, whole_path
from devft_jax.models.huggingface.folder import named_from_anywhere as model_from_anywhere
from devft_jax.models.lora import LoraOptions, resolve_alpha, validate_lora
from devft_jax.models.quantization import QuantizationOptions, validate_quantization
from devft_jax.options import (
    check_options,
    check_paths,
    closest,
    execution,
    identity_fields,
    known_name,
    option,
    own_fields,
    path,
)
from devft_jax.storage.ownership import RUN_OPTIONS


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """The model, the seed and the run's folder."""

    model: str = path("bundled")
    """Frozen base model: a Hugging Face folder or name, or bundled for the small LLaMA that comes with the package."""
    seed: int = option(0, within="[0, 2^32)")
    """Seed of initialisation, cohorts, data order, dropout and k-means."""
    out: str | None = execution(None, path=True)
    """The run's folder: absent, empty or this run's own, anything else is refused untouched; by default one under runs/
    named after the configuration."""
    checkpoint_every: int = execution(10, at_least=1)
    """Rounds between checkpoints; a stopped run resumes from the last one."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(
    JobOptions,
    DataOptions,
    QuantizationOptions,
    GrowthOptions,
    MethodConfig,
    LearningRateOptions,
    OptimizerOptions,
    EvaluationOptions,
    ExecutionOptions,
    EnergyOptions,
):
    """Everything that describes a run; see the rooms' dataclasses for the fields."""

    def __new__(cls, **options: Any) -> Self:
        """Notes which options it is made with."""
        made = super().__new__(cls)
        object.__setattr__(made, "_given", frozenset(options))
        return made

    def __post_init__(self) -> None:
        """Names are written as the package writes them."""
        for name in field_types():
            object.__setattr__(self, name, _in_known_case(name, getattr(self, name)))

    @property
    def given(self) -> frozenset[str]:
        """The options that it was made with; none where all were handed over, as by `dataclasses.replace`: nobody says then
        which of them are meant for this run."""
        given: frozenset[str] = getattr(self, "_given")  # noqa: B009
        return given if len(given) < len(dataclasses.fields(self)) else frozenset()

    def with_given(self, names: Iterable[str]) -> Self:
        """The same options, of which these are the ones that were given."""
        made = dataclasses.replace(self)
        object.__setattr__(made, "_given", frozenset(names))
        return made


ROOMS: tuple[type, ...] = (
    JobOptions,
    DataOptions,
    QuantizationOptions,
    LoraOptions,
    StageOptions,
    *OPTIONS_OF_GROWTHS,
    FederatedOptions,
    *OPTIONS_OF_ALGORITHMS,
    LearningRateOptions,
    OptimizerOptions,
    EvaluationOptions,
    ExecutionOptions,
    EnergyOptions,
)
"""The dataclasses that declare options of a run."""

NAMES = tuple(field.name for room in ROOMS for field in own_fields(room))
"""Every option, room by room."""

if sorted(NAMES) != sorted(field.name for field in dataclasses.fields(RunConfig)):
    # Inheritance would silently merge two rooms' options of one name.
    raise TypeError(f"two rooms share an option name, or a room is missing: {sorted(NAMES)}")

# Shared by the paper's three models; 4 bits are its INT4, in the form of the framework that it follows.
_PAPER: dict[str, Any] = {
    "data": "vicgalle/alpaca-gpt4",
    "data_limit": 20_000,
    "clients": 20,
    "template": "openfedllm",
    "partition": "iid",
    "clients_per_round": 2,
    "local_steps": 10,
    "batch_size": 16,
    "max_length": 512,
    "rank": 32,
    "alpha": 64.0,
    "dropout": 0.05,
    "quantization": "nf4",
    "rounds": 300,
    "capacities": (4, 8, 16, 32),
    "learning_rate": (1e-6, 1e-5, 1e-4, 1e-4),
    "schedule": "cosine-per-stage",
    "beta": 0.1,
    "dtype": "bfloat16",
    "remat": "full",
}

PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "model": "bundled",
        "data": "microtasks:train:6000",
        "test_data": "microtasks:test:320",
        "template": "alpaca_short",
        "partition": "dirichlet",
        "dirichlet_alpha": 0.3,
        "clients": 20,
        "clients_per_round": 4,
        "local_steps": 8,
        "batch_size": 4,
        "max_length": 96,
        "rounds": 16,
        "rank": 16,
        "alpha": 64.0,
        "learning_rate": (6e-3,),
        "schedule": "cosine",
        "dropout": 0.0,
        "evaluate_every": 4,
    },
    "paper-llama2-7b": {**_PAPER, "model": "meta-llama/Llama-2-7b-hf"},
    "paper-llama3.1-8b": {**_PAPER, "model": "meta-llama/Llama-3.1-8B"},
    "paper-llama2-13b": {
        **_PAPER,
        "model": "meta-llama/Llama-2-13b-hf",
        "rounds": 400,
        "capacities": (5, 10, 20, 40),
        "beta": 0.15,
    },
    # Models that the paper did not train by DevFT, in its protocol: an eighth, a quarter, half and all layers, rounded up.
    "tinyllama-1.1b": {
        **_PAPER,
        "model": "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
        "capacities": (3, 6, 11, 22),
    },
    "llama-33b": {**_PAPER, "model": "huggyllama/llama-30b", "capacities": (8, 15, 30, 60)},
    "llama2-70b": {**_PAPER, "model": "meta-llama/Llama-2-70b-hf", "capacities": (10, 20, 40, 80)},
}


MOST_CONFIG_BYTES = 2**20
"""Bytes of a configuration file."""

MOST_TRAININGS = 10**7
"""Clients of all rounds together, each counted in every round that it takes part in."""


def preset(name: str) -> RunConfig:
    """A named configuration; its fields can be overridden with `dataclasses.replace`. The name may be in any case."""
    return RunConfig(**PRESETS[known_name("preset", name, PRESETS)])


@functools.cache
def field_types() -> dict[str, Any]:
    """The annotation of every field of `RunConfig`."""
    return typing.get_type_hints(RunConfig)


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


def option_value(name: str, value: Any, *, exact: bool = False) -> Any:
    """The value of one option from its plain value or text; see `devft_jax.config.values.convert`."""
    found = convert(name, value, field_types()[name], exact=exact)
    return _in_known_case(name, found)


def _in_known_case(name: str, value: Any) -> Any:
    """An option's value, a name of the package's own in the case in which it is known."""
    if not isinstance(value, str):
        return value
    declared = RunConfig.__dataclass_fields__[name].metadata.get("choices", METHODS.get(name, ()))
    by_case = {each.lower(): each for each in (*declared, *choices_of(field_types()[name]))}
    return by_case.get(value.lower(), value)


def config_from_mapping(values: Mapping[str, Any], start: RunConfig | None = None, *, exact: bool = False) -> RunConfig:
    """A configuration from plain values (YAML, JSON), on top of `start` (by default every field's default).

    Args:
      exact: the values are what `to_plain` gave, so that text stands for itself; otherwise they are read as people write
        them, `4,8` for a list.

    Raises:
      InputError: an option does not exist, or a value is not of its type.
    """
    annotations = field_types()
    for name in values:
        if name not in annotations:
            hint = closest(str(name), annotations, "see `devft run --help`.")
            raise InputError(f"the option '{printable(str(name))}' does not exist; {hint}")
    found = {name: option_value(name, value, exact=exact) for name, value in values.items()}
    return dataclasses.replace(start or RunConfig(), **found).with_given(found)


def read_config(path: str | Path, start: RunConfig | None = None) -> RunConfig:
    """A configuration from a YAML or JSON file of `RunConfig`'s fields; `preset` may name a preset to start from.

    The `config.json` of a run's folder is one, whose text stands for itself.
    """
    path = checked_path(path, "config")
    values = read_yaml(path, "the configuration", MOST_CONFIG_BYTES)
    if not isinstance(values, dict):
        raise InputError(f"the configuration {printable(str(path))} must hold options by name, such as rounds: 40.")
    values = dict(values)
    if "preset" in values:
        name = values.pop("preset")
        if start is not None:
            raise InputError(f"the configuration {printable(str(path))} names a preset, and so does --preset; give one.")
        start = preset(name)
    return config_from_mapping(values, start)


def stored_config(fields: Mapping[str, Any], folder: Path) -> tuple[RunConfig, dict[str, str]]:
    """The configuration in a run's config.json, and what was given as objects in Python, by name.

    Raises:
      InputError: it is not a run's, or a value is of another type than its option's.
    """
    path, objects = folder / "config.json", fields.get("objects", {})
    lacking = sorted(RUN_OPTIONS - fields.keys())
    if lacking:
        raise InputError(f"{path} is no run's (it lacks {lacking[0]}); restore it, or name a folder that `devft run` wrote.")
    if not isinstance(objects, dict) or not all(isinstance(text, str) for text in objects.values()):
        raise InputError(f"{path} has objects that are no names; restore it, or name another folder.")
    try:
        config = config_from_mapping({name: value for name, value in fields.items() if name != "objects"}, exact=True)
        validate_types(config)
    except InputError as error:
        reason = str(error).rpartition(";")[0] or str(error)
        raise InputError(f"{path} is not as this version writes it ({reason}); restore it, or name another run.") from error
    return config, objects


def to_plain(config: RunConfig) -> dict[str, Any]:
    """The configuration as JSON-ready values, alpha as the number that it stands for."""
    return json.loads(json.dumps(dataclasses.asdict(config) | {"alpha": resolve_alpha(config)}))


def validate_types(config: RunConfig) -> None:
    """Raise `InputError` for a value of another type than its option's, or a list that is too long."""
    for name, annotation in field_types().items():
        value = getattr(config, name)
        if not _matches(value, annotation):
            raise InputError(f"{name} {value!r} is not {readable(annotation)}; correct it.")
        if isinstance(value, tuple) and len(value) > MOST_ITEMS:
            raise InputError(f"{name} has {len(value):,} values; give {MOST_ITEMS:,} or fewer.")


def validate(config: RunConfig) -> None:
    """Raise `InputError` for anything that can be known to be wrong before model and data are read."""
    validate_types(config)
    check_paths(config)
    for kind, known in METHODS.items():
        known_name(kind, getattr(config, kind), known)
    check_options(config)
    validate_data(config)
    validate_quantization(config)
    validate_lora(config)
    validate_learning_rate(config)
    validate_execution(config)
    trainings = config.rounds * config.clients_per_round
    if trainings > MOST_TRAININGS:
        raise InputError(
            f"rounds {config.rounds} of clients_per_round {config.clients_per_round} are {trainings:,} trainings of a "
            f"client; use {MOST_TRAININGS:,} or less."
        )
    if config.capacities is not None:
        try:
            validate_capacities(config.capacities)
        except ValueError as error:
            raise InputError(str(error)) from error
        if config.growth == "devft":
            validate_learning_rate(config, len(config.capacities))
    if config.capacity_schedule == "eigengap" and config.growth != "devft":
        raise InputError(f"capacity_schedule 'eigengap' is of growth devft, not {config.growth}; use geometric or linear.")


def anchored(config: RunConfig) -> RunConfig:
    """The configuration with every local file and folder named by its whole path, so that it holds wherever one stands."""
    changes: dict[str, Any] = {}
    for name in ("data", "test_data", "probe_data"):
        value = getattr(config, name)
        if value is not None:
            named = data_from_anywhere(value) if isinstance(value, str) else tuple(map(data_from_anywhere, value))
            changes[name] = named
    if config.model != "bundled":
        changes["model"] = model_from_anywhere(config.model)
    for name in ("out", "cache_dir"):
        if getattr(config, name) is not None:
            changes[name] = str(whole_path(checked_path(getattr(config, name), name)))
    return dataclasses.replace(config, **changes)


def identity(config: RunConfig) -> dict[str, Any]:
    """The plain values that decide what is computed; `rounds` may grow on resume and is treated apart."""
    plain = to_plain(anchored(config))
    return {name: plain[name] for name in identity_fields(config) if name != "rounds"}


def identity_hash(config: RunConfig) -> str:
    """Eight hexadecimal digits of the identity and the rounds, for default folder names."""
    text = json.dumps({**identity(config), "rounds": config.rounds}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
