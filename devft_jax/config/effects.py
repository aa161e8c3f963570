"""Which options have an effect, given the values of the others; options without effect are refused.

A user who gives an option that a run does not read expects a different run, so the option is refused with one sentence that
says which methods read it. What counts as *given*:

    on the command line     a flag, or an entry of a configuration file, whose value differs from the start value (the
                            default's or the preset's). A file that holds every option is the record of a run, and the
                            command starts from it as from a preset.
    in an arm               every option of the arm itself; an option that all arms share must be read by at least one.
    in Python               the arguments of `RunConfig(...)` that differ from the defaults. A configuration derived by
                            `dataclasses.replace` has values that were meant for another run, and is not checked.

The conditions of an option are declared with it (`when`, `also`, `beside`, `needs` of `devft_jax.options.option`). What the
algorithm and the growth read is declared in their records: an option of single methods (`of`) is read by the methods that
list it in `reads`, any other option by all methods that do not list it in `ignores`.

Execution options may be given without effect, because the machine decides whether they have one. When a run is resumed,
options without effect are not compared.
"""

import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from devft_jax.config.methods import METHODS, readers, record_in, record_of
from devft_jax.config.run_config import NAMES, RunConfig
from devft_jax.data import DataOptions
from devft_jax.developmental.records import NamedGrowth
from devft_jax.errors import InputError
from devft_jax.federated.description import Description
from devft_jax.options import own_fields

DEFAULTS = RunConfig()
OF_DATA = {field.name for field in own_fields(DataOptions)}
DECLARED: dict[str, Mapping[str, Any]] = {field.name: field.metadata for field in fields(RunConfig)}


@dataclass(frozen=True)
class Unread:
    """Why an option has no effect.

    Attributes:
      part: the part of the run that decides this: "data", "algorithm" or "growth"; None if no such part does.
      reason: the reason, written to follow the option's name.
      remedy: what would give the option an effect.
    """

    part: str | None
    reason: str
    remedy: str


def unread(config: RunConfig, objects: Collection[str] = ()) -> dict[str, Unread]:
    """The options that have no effect given the others, each with the first reason.

    Args:
      config: a configuration of valid values.
      objects: parts of the run that were given as objects: "data", "algorithm" or "growth". What they read is not known, so
        an option that may depend on one of them is not reported. The same holds for a user-defined growth without a record.
    """
    silent = {kind for kind in METHODS if record_in(config, kind) is None}
    found = {name: next(_reasons(config, name), None) for name in NAMES if not _parts(name) & {*objects, *silent}}
    return {name: reason for name, reason in found.items() if reason is not None}


def _reasons(config: RunConfig, name: str) -> Iterator[Unread]:
    """Every reason why an option has no effect; the most decisive first."""
    declared = DECLARED[name]
    if any(getattr(config, decider) in values for decider, values in declared.get("also", {}).items()):
        return
    for kind in METHODS:
        chosen = getattr(config, kind)
        method = record_in(config, kind)
        if method is None:
            continue
        if declared.get("of") == kind and name not in method.reads:
            yield _read_elsewhere(kind, chosen, readers(kind, name), kind)
        if name in method.ignores:
            reason = f"has no effect with the {kind} {chosen}, which {method.because}"
            yield Unread(kind, reason, f"use another --{kind}")
    for decider, values in declared.get("when", {}).items():
        if getattr(config, decider) not in values:
            yield _read_elsewhere(decider, getattr(config, decider), values, _part(decider))
    other = declared.get("beside")
    # An option that is not read itself cannot exclude another.
    if other is not None and getattr(config, other) is not None and next(_reasons(config, other), None) is None:
        yield Unread(_part(other), f"has no effect beside {other}", f"leave {other} out")
    for need in declared.get("needs", ()):
        if not need.holds(config):
            yield Unread(need.part, need.reason_in(config), need.remedy)


def _read_elsewhere(decider: str, chosen: str, values: Collection[str], part: str | None) -> Unread:
    """For an option that is read only for certain values of the option `decider`."""
    reason = f"is read by {listed(values, 'and')} only and the {decider.replace('_', ' ')} is {chosen}"
    return Unread(part, reason, f"use --{decider.replace('_', '-')} {listed(values, 'or')}")


def _part(decider: str) -> str | None:
    """The part of a run that an option selects."""
    return "data" if decider in OF_DATA else DECLARED[decider].get("of")


def _parts(name: str) -> set[str | None]:
    """The parts of a run that may decide whether an option is read."""
    declared = DECLARED[name]
    deciders = [*declared.get("when", ()), *([declared["beside"]] if "beside" in declared else [])]
    ignored = {kind for kind in METHODS if any(name in record.ignores for record in _records(kind))}
    needed = {need.part for need in declared.get("needs", ())}
    return {declared.get("of"), *map(_part, deciders), *needed, *ignored}


@functools.cache
def _records(kind: str) -> list[Description | NamedGrowth]:
    """The records of the package's own methods."""
    found = (record_of(kind, each) for each in METHODS[kind])
    return [record for record in found if record is not None]


def listed(words: Collection[str], last: str) -> str:
    """Words joined for a sentence: a, b and c.

    Args:
      words: at least one.
      last: the word before the last one, "and" or "or".
    """
    *others, end = words
    return f"{', '.join(others)} {last} {end}" if others else end


def changed(config: RunConfig, start: RunConfig = DEFAULTS) -> set[str]:
    """The options whose values differ from those of `start`.

    Args:
      config: the configuration.
      start: the configuration to compare with, by default the defaults.
    """
    return {name for name in NAMES if getattr(config, name) != getattr(start, name)}


def given_options(config: RunConfig) -> frozenset[str]:
    """The options that were given with a value other than the default.

    Args:
      config: the configuration.
    """
    return config.given & changed(config)


def check_effects(config: RunConfig, objects: Collection[str] = ()) -> None:
    """Raise `InputError` for an option that was given but has no effect.

    Args:
      config: a configuration of valid values.
      objects: parts of the run that were given as objects; see `unread`.
    """
    given = given_options(config)
    found = {name: reason for name, reason in unread(config, objects).items() if name in given}
    for name in found:
        others = [with_value(config, other) for other in found if other != name]
        besides = f" ({listed(others, 'and')} {'has' if len(others) == 1 else 'have'} no effect either)" if others else ""
        raise InputError(f"{with_value(config, name)} {found[name].reason}; leave it out or {found[name].remedy}{besides}.")


def check_arms_effects(common: RunConfig, arms: Mapping[str, tuple[RunConfig, Collection[str]]]) -> None:
    """Raise `InputError` for an option that an arm sets but does not read, or that all arms share and none reads.

    Args:
      common: the options that the arms share.
      arms: for each arm, by name, its configuration and the names of the options that it sets itself.
    """
    lacking = {name: unread(config) for name, (config, _) in arms.items()}
    for arm, (config, own) in arms.items():
        for name in own:
            if name in lacking[arm] and getattr(config, name) is not None:
                raise InputError(
                    f"the arm '{arm}' sets {with_value(config, name)}, which {lacking[arm][name].reason}; leave it out."
                )
    for name in sorted(given_options(common)):
        if all(name in each for each in lacking.values()):
            arm = next(iter(arms))
            raise InputError(
                f"no arm reads {with_value(common, name)}: in '{arm}' it {lacking[arm][name].reason}; leave it out, "
                "or add an arm that reads it."
            )


def with_value(config: RunConfig, name: str) -> str:
    """An option with its value, for an error message.

    Args:
      config: the configuration that has the value.
      name: name of the option.
    """
    return f"{name} {shown(getattr(config, name))}"


def shown(value: Any) -> str:
    """A value as it is written after a flag.

    Args:
      value: value of an option.
    """
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
