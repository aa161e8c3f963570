"""The command line that reproduces a configuration: the inverse of `devft_jax.commands.run.parse_run`.

A configuration does not store the preset it came from, so the command starts from the defaults or from the preset with
the fewest differing options.
"""

import dataclasses
import shlex
from typing import Any

from devft_jax.config.effects import unread
from devft_jax.config.presets import PRESETS, preset
from devft_jax.config.run_config import NAMES, RunConfig, field_types
from devft_jax.config.values import as_words
from devft_jax.errors import InputError
from devft_jax.models.options import resolve_alpha


def nearest_preset(config: RunConfig) -> str | None:
    """The preset with the fewest differing options, not counting `out`; None if the defaults are as close.

    Args:
      config: the run's configuration.
    """
    names = [None, *PRESETS]
    return min(names, key=lambda name: len(differing(config, start_of(name)).keys() - {"out"}))


def start_of(name: str | None) -> RunConfig:
    """A preset's configuration, or the defaults.

    Args:
      name: name of the preset; None for the defaults.
    """
    return RunConfig() if name is None else preset(name)


def differing(config: RunConfig, start: RunConfig) -> dict[str, Any]:
    """The options whose values differ from those of `start`, by name, in the order of the option groups.

    Args:
      config: the run's configuration.
      start: the configuration from which the command starts.
    """
    if start.alpha == "auto" and resolve_alpha(config) == resolve_alpha(dataclasses.replace(config, alpha="auto")):
        # config.json holds the number that auto was resolved to.
        config = dataclasses.replace(config, alpha="auto")
    return {name: getattr(config, name) for name in NAMES if getattr(config, name) != getattr(start, name)}


def command_line(config: RunConfig) -> str:
    """A shell command that parses to this configuration.

    Options of methods that the run does not use, such as those that the arms of a comparison share, are left out; all are
    kept if a user-defined method cannot be imported here, as when a run is reported on another machine.

    Args:
      config: the run's configuration.
    """
    name, kinds = nearest_preset(config), field_types()
    try:
        needless = {option for option, reason in unread(config).items() if reason.part in ("algorithm", "growth")}
    except InputError:
        needless = set()
    changes = {option: value for option, value in differing(config, start_of(name)).items() if option not in needless}
    # The folder comes last, where it is easy to replace.
    changes = {option: changes[option] for option in sorted(changes, key=lambda option: option == "out")}
    words = ["devft", "run", *(["--preset", name] if name else [])]
    for option, value in changes.items():
        words += [f"--{option.replace('_', '-')}", *as_words(value, kinds[option])]
    return shlex.join(words)
