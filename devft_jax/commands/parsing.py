"""Parses the words of a command: the options of one dataclass, or a run's configuration with options of the command.

A run's configuration starts from a preset, then a file, then the flags; later values override earlier ones.
"""

import dataclasses
import inspect
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from devft_jax.commands.flags import Flag, Section, asks_help, flags_of, parse
from devft_jax.options import own_fields, path

if TYPE_CHECKING:
    from devft_jax.config.run_config import RunConfig

Options = TypeVar("Options")

START = "Flags override the values of --config, and these override the values of --preset."

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
"""Options listed first in the help text of a run: those that most users need."""


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """Where the values of the other options start from."""

    preset: str | None = None
    """Start from a preset of `devft list`, such as demo."""
    config: str | None = path(None)
    """Start from a YAML or JSON file of option names and values, such as `rounds: 40`."""


@dataclass(frozen=True)
class NoOptions:
    """For a command that takes only the options of a run."""


def parse_options(command: str, options: type[Options], arguments: Sequence[str]) -> Options:
    """Parse the options of one dataclass and of those that it extends; its docstring describes the command.

    Args:
      command: the command, such as "devft report".
      options: the dataclass.
      arguments: the words after the command.

    Returns:
      An instance of `options`.

    Raises:
      InputError: the words cannot be parsed as these options.
    """
    about = inspect.cleandoc(options.__doc__ or "")
    groups = [group for group in options.__mro__ if dataclasses.is_dataclass(group)]
    flags = [flag for group in groups for flag in flags_of(group)]
    return options(**parse(command, about, [Section("options", flags)], arguments))


def parse_configuration(
    arguments: Sequence[str], own: type[Options], *, command: str, about: str, without: Sequence[str] = ()
) -> "tuple[RunConfig, Options]":
    """Parse a run's configuration and the command's own options, which come first in its help text.

    Args:
      arguments: the words after the command.
      own: dataclass of the command's own options; `NoOptions` if it has none.
      command: the command, such as "devft run".
      about: what the command does, for its help text.
      without: options of a run that have no flag here and keep the value of the preset or the file.

    Returns:
      The configuration and the command's own options.

    Raises:
      InputError: the words, the preset or the file cannot be parsed as these options.
    """
    section = Section(title_of(own), flags_of(own))
    config, values = parse_sections(arguments, [section], command=command, about=about, without=without)
    return config, own(**values)


def parse_sections(
    arguments: Sequence[str], own: Sequence[Section], *, command: str, about: str, without: Sequence[str] = ()
) -> "tuple[RunConfig, dict[str, Any]]":
    """Parse a run's configuration and the command's own options of several sections, which come first in its help text.

    Args:
      arguments: the words after the command.
      own: sections of the command's own options.
      command: the command, such as "devft run".
      about: what the command does, for its help text.
      without: options of a run that have no flag here and keep the value of the preset or the file.

    Returns:
      The configuration, and the given values of the command's own options by name.

    Raises:
      InputError: the words, the preset or the file cannot be parsed as these options.
    """
    from devft_jax.config.files import read_config
    from devft_jax.config.presets import preset
    from devft_jax.config.run_config import OPTION_GROUPS, RunConfig, option_value
    from devft_jax.config.validation import validate_types

    shown = _preset_of(arguments) if asks_help(arguments) else None
    own_names = [flag.name for section in own for flag in section.flags]
    sections = [Section("start", flags_of(StartOptions)), *own]
    groups = {group: flags_of(group, shown, without) for group in OPTION_GROUPS}
    asked = asks_help(arguments)
    sections += [
        _help_section(group, flags) if asked else Section(title_of(group), flags) for group, flags in groups.items()
    ]
    values = parse(command, about, sections, arguments, MOST_USED)

    preset_name, file_name = values.pop("preset", None), values.pop("config", None)
    start = None if preset_name is None else preset(preset_name)
    if file_name is not None:
        start = read_config(file_name, start)
    own_values = {name: values.pop(name) for name in own_names if name in values}
    config = dataclasses.replace(
        start or RunConfig(), **{name: option_value(name, value, exact=True) for name, value in values.items()}
    )
    # A preset's options were not chosen for this run; those of a file and of flags were.
    config = config.with_given({*(start.given if file_name is not None and start is not None else ()), *values})
    validate_types(config)
    return config, own_values


def _preset_of(arguments: Sequence[str]) -> "RunConfig | None":
    """The preset whose values the help text shows as defaults; None if none is named."""
    from devft_jax.config.presets import preset

    after = [following for word, following in itertools.pairwise(arguments) if word == "--preset"]
    named = [word.partition("=")[2] for word in arguments if word.startswith("--preset=")] + after
    return preset(named[0]) if named and not named[0].startswith("-") else None


def _help_section(group: type, flags: Sequence[Flag]) -> Section:
    """A group's options in `--help`; the heading names the methods that read them if only some methods do."""
    from devft_jax.config.effects import listed
    from devft_jax.config.methods import METHODS, readers

    of = {field.name: field.metadata.get("of") for field in own_fields(group)}
    found = {flag.name: readers(str(of[flag.name]), flag.name) for flag in flags if of[flag.name]}
    title, heads = title_of(group), set().union(*found.values())
    if len({*of.values()}) > 1 or None in of.values():
        heads = set()
    elif found:
        [kind] = {*of.values()}
        names = [name for name in METHODS[str(kind)] if name in heads]
        title = f"{kind}{'s' if len(names) > 1 else ''} {', '.join(names)}"
    noted = {name: f" Read by {listed(names, 'and')}." for name, names in found.items() if {*names} != heads}
    return Section(title, [dataclasses.replace(flag, text=flag.text + noted.get(flag.name, "")) for flag in flags])


def title_of(options: type) -> str:
    """LearningRateOptions -> learning rate, the heading of its options in `--help`.

    Args:
      options: the dataclass.
    """
    return re.sub(r"(?<!^)(?=[A-Z])", " ", options.__name__.removesuffix("Options")).lower()
