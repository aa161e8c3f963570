"""The command line that says a configuration: the reverse of `devft_jax.cli.parse_run`.

A configuration does not remember the preset it came from, so the command starts from the defaults or the preset from which
the fewest options differ.
"""

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

from devft_jax.config import PRESETS, ROOMS, RunConfig, preset


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


def command_line(config: RunConfig) -> str | None:
    """The shell command whose parsing gives this configuration; None where flags cannot say it.

    What flags cannot say: several data sets by name, an empty tuple, an empty text, and a text that begins like a
    flag, reads `None` as if there were no value, or cannot be printed and copied. A configuration file can.
    """
    name = nearest_preset(config)
    changes = differing(config, start_of(name))
    # The folder last, where it is easily replaced.
    changes = {option: changes[option] for option in sorted(changes, key=lambda option: option == "out")}
    words = ["devft", "run", *(["--preset", name] if name else [])]
    for option, value in changes.items():
        parts = _words(value)
        if not all(parts) or not parts or any(_misread(part, value) for part in parts):
            return None
        words += [f"--{option.replace('_', '-')}", *parts]
    if isinstance(config.data, tuple):
        return None
    return shlex.join(words)


def _words(value: Any) -> list[str]:
    """An option's value as the words behind its flag."""
    if isinstance(value, Mapping):
        return [str(part) for pair in value.items() for part in pair]
    if isinstance(value, tuple):
        return [",".join(map(str, value))]
    return [str(value)]


def _misread(part: str, value: Any) -> bool:
    """Whether a parser would take the word for a flag or for no value, or a reader not see what it is."""
    return isinstance(value, str | Mapping) and (part.startswith("-") or part == "None" or not part.isprintable())
