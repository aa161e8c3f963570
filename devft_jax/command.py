"""The command line that says a configuration: the reverse of `devft_jax.cli.parse_run`.

A configuration does not remember the preset it came from, so the command starts from the defaults or the preset from which
the fewest options differ.
"""

import dataclasses
import shlex
from typing import Any

from devft_jax.config import PRESETS, ROOMS, RunConfig, field_types, preset
from devft_jax.values import as_words


def nearest_preset(config: RunConfig) -> str | None:
    """The preset from which the fewest options differ, `out` not counted; None where the defaults are as near."""
    names = [None, *PRESETS]
    return min(names, key=lambda name: len(differing(config, start_of(name)).keys() - {"out"}))


def start_of(name: str | None) -> RunConfig:
    """A preset's configuration, or the defaults."""
    return RunConfig() if name is None else preset(name)


def differing(config: RunConfig, start: RunConfig) -> dict[str, Any]:
    """The options whose values are not those of `start`, by name, in the order of the rooms."""
    names = [field.name for room in ROOMS for field in dataclasses.fields(room)]
    return {name: getattr(config, name) for name in names if getattr(config, name) != getattr(start, name)}


def command_line(config: RunConfig) -> str:
    """The shell command whose parsing gives this configuration."""
    name = nearest_preset(config)
    changes, kinds = differing(config, start_of(name)), field_types()
    # The folder last, where it is easily replaced.
    changes = {option: changes[option] for option in sorted(changes, key=lambda option: option == "out")}
    words = ["devft", "run", *(["--preset", name] if name else [])]
    for option, value in changes.items():
        words += [f"--{option.replace('_', '-')}", *as_words(value, kinds[option])]
    return shlex.join(words)
