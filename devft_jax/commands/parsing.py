"""The words of a command as its options: those of one dataclass, or a run's configuration with options of the command.

A run's configuration starts from a preset, then a file, then the flags; later ones win.
"""

import dataclasses
import inspect
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from devft_jax.commands.flags import Flag, Section, flags_of, parse
from devft_jax.options import own_fields, path

if TYPE_CHECKING:
    from devft_jax.config.run_config import RunConfig

Options = TypeVar("Options")

START = "Options win over those of --config, and these over those of --preset."

MOST_USED = (
    "preset",
    "config",
    "model",
    "data",
    "test_data",
    "algorithm",
    "growth",
    "capacities",
    "clients",
    "rounds",
    "out",
)
"""Options that open the help of a run: all that most people need."""


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """What the other options start from."""

    preset: str | None = None
    """Start from a preset of `devft list`, such as demo."""
    config: str | None = path(None)
    """Start from a YAML or JSON file of the same names, such as `rounds: 40`."""


@dataclass(frozen=True)
class NoOptions:
    """A command that takes only the options of a run."""


def parse_options(command: str, options: type[Options], arguments: Sequence[str]) -> Options:
    """The options of one dataclass, whose docstring says what the command does.

    Args:
      command: such as "devft report".
      options: the dataclass.
      arguments: the words after the command.

    Returns:
      An instance of `options`.

    Raises:
      InputError: the words cannot be read as these options.
    """
    about = inspect.cleandoc(options.__doc__ or "")
    return options(**parse(command, about, [Section("options", flags_of(options))], arguments))


def parse_configuration(
    arguments: Sequence[str], own: type[Options], *, command: str, about: str, without: Sequence[str] = ()
) -> "tuple[RunConfig, Options]":
    """A run's configuration, and the command's own options, whose flags come first in its help.

    Args:
      arguments: the words after the command.
      own: dataclass of the command's own options; `NoOptions` where it has none.
      command: such as "devft run".
      about: what the command does, for its help.
      without: options of a run that have no flags here and stay as the preset or the file has them.

    Returns:
      The configuration and the command's own options.

    Raises:
      InputError: the words, the preset or the file cannot be read as these options.
    """
    from devft_jax.config.files import read_config
    from devft_jax.config.presets import preset
    from devft_jax.config.run_config import ROOMS, RunConfig, option_value
    from devft_jax.config.validation import validate_types

    shown = _preset_of(arguments) if _asks_help(arguments) else None
    own_flags = flags_of(own)
    sections = [Section("start", flags_of(StartOptions)), Section(_title(own), own_flags)]
    rooms = {room: flags_of(room, shown, without) for room in ROOMS}
    asked = _asks_help(arguments)
    sections += [_helped(room, flags) if asked else Section(_title(room), flags) for room, flags in rooms.items()]
    values = parse(command, about, sections, arguments, MOST_USED)

    preset_name, file_name = values.pop("preset", None), values.pop("config", None)
    start = None if preset_name is None else preset(preset_name)
    if file_name is not None:
        start = read_config(file_name, start)
    own_values = {flag.name: values.pop(flag.name) for flag in own_flags if flag.name in values}
    config = dataclasses.replace(
        start or RunConfig(), **{name: option_value(name, value, exact=True) for name, value in values.items()}
    )
    # A preset's options are nobody's choice for this run; those of a file and of flags are.
    config = config.with_given({*(start.given if file_name is not None and start is not None else ()), *values})
    validate_types(config)
    return config, own(**own_values)


def _asks_help(arguments: Sequence[str]) -> bool:
    return any(word in ("-h", "--help") for word in arguments)


def _preset_of(arguments: Sequence[str]) -> "RunConfig | None":
    """The preset whose values a help shows as defaults; None where none is named."""
    from devft_jax.config.presets import preset

    after = [following for word, following in itertools.pairwise(arguments) if word == "--preset"]
    named = [word.partition("=")[2] for word in arguments if word.startswith("--preset=")] + after
    return preset(named[0]) if named and not named[0].startswith("-") else None


def _helped(room: type, flags: Sequence[Flag]) -> Section:
    """A room's options in `--help`, headed by the methods that read them where they are of single methods."""
    from devft_jax.config.effects import listed
    from devft_jax.config.methods import METHODS, readers

    of = {field.name: field.metadata.get("of") for field in own_fields(room)}
    found = {flag.name: readers(str(of[flag.name]), flag.name) for flag in flags if of[flag.name]}
    title, heads = _title(room), set().union(*found.values())
    if len({*of.values()}) > 1 or None in of.values():
        heads = set()
    elif found:
        [kind] = {*of.values()}
        names = [name for name in METHODS[str(kind)] if name in heads]
        title = f"{kind}{'s' if len(names) > 1 else ''} {', '.join(names)}"
    noted = {name: f" Read by {listed(names, 'and')}." for name, names in found.items() if {*names} != heads}
    return Section(title, [dataclasses.replace(flag, text=flag.text + noted.get(flag.name, "")) for flag in flags])


def _title(options: type) -> str:
    """LearningRateOptions -> learning rate, which heads its options in `--help`."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", options.__name__.removesuffix("Options")).lower()
