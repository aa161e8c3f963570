"""Configurations as files and plain values: YAML and JSON written by users, and the config.json of a run."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devft_jax.config.presets import preset
from devft_jax.config.run_config import RunConfig, field_types, option_value
from devft_jax.config.validation import validate_types
from devft_jax.errors import InputError
from devft_jax.files import checked_path, printable, read_yaml
from devft_jax.models.options import resolve_alpha
from devft_jax.options import closest
from devft_jax.storage.ownership import RUN_OPTIONS

MOST_CONFIG_BYTES = 2**20
"""Most bytes of a configuration file."""


def config_from_mapping(values: Mapping[str, Any], start: RunConfig | None = None, *, exact: bool = False) -> RunConfig:
    """A configuration from plain values (YAML, JSON), on top of `start` (by default every field's default).

    Args:
      values: options by name.
      start: the values of the other options.
      exact: whether the values are the output of `to_plain`, so that text is taken literally; otherwise they are parsed as
        users write them, such as `4,8` for a list.

    Raises:
      InputError: an option does not exist, or a value has the wrong type.
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

    The `config.json` of a run's folder is such a file, whose text values are taken literally.

    Args:
      path: path of the file.
      start: the values of the options that the file does not set.

    Raises:
      InputError: the file cannot be read, or does not hold options by name.
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
    """The configuration in a run's config.json, and the parts that were given as objects in Python, by name.

    Args:
      fields: the contents of config.json.
      folder: the run's folder, for error messages.

    Raises:
      InputError: it is not the config.json of a run, or a value has the wrong type.
    """
    path, objects = folder / "config.json", fields.get("objects", {})
    lacking = sorted(RUN_OPTIONS - fields.keys())
    if lacking:
        raise InputError(
            f"{path} is not a run's (it lacks {lacking[0]}); restore it, or name a folder that `devft run` wrote."
        )
    if not isinstance(objects, dict) or not all(isinstance(text, str) for text in objects.values()):
        raise InputError(f"{path} has objects that are not names; restore it, or name another folder.")
    try:
        config = config_from_mapping({name: value for name, value in fields.items() if name != "objects"}, exact=True)
        validate_types(config)
    except InputError as error:
        reason = str(error).rpartition(";")[0] or str(error)
        raise InputError(f"{path} does not fit this version ({reason}); restore it, or name another run.") from error
    return config, objects


def to_plain(config: RunConfig) -> dict[str, Any]:
    """The configuration as JSON-ready values, with alpha as the number that it resolves to.

    Args:
      config: the run's configuration.
    """
    return json.loads(json.dumps(dataclasses.asdict(config) | {"alpha": resolve_alpha(config)}))
