"""Options: how they are declared beside the code that reads them, and the checks that follow from the declaration alone.

Every package declares its options as a frozen dataclass, and so does every method that has options of its own. The fields
become flags of the command line and keys of a configuration file, under the same flat names. The docstring under a field is
its text in `--help`, and `option` declares the rest:

    rank: int = option(32, at_least=1, at_most=2**16)
    dropout: float = option(0.05, within="[0, 1)", remedy="0.05 is usual")
    optimizer: str = option("adamw", choices=("adamw", "sgd"))
    beta1: float = option(0.9, within="[0, 1)", when={"optimizer": ("adamw",)})
    devices: int | None = execution(None, at_least=1)

By default a field is part of the run's *identity*: it decides what is computed, and only a run with the same value may
resume the folder. `execution` marks the other fields (devices, chunk sizes, logging), which may change between a stop and a
resume.

A declaration is stored in the field's metadata, as plain values under the names of `option`'s arguments. This lets
`devft_jax.developmental`, which imports nothing else of this package, declare its options by `dataclasses.field`.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from devft_jax.errors import InputError
from devft_jax.files import checked_path, printable

Group = TypeVar("Group")

LARGEST = 2**53
"""Upper bound of a whole number whose option declares none."""


@dataclass(frozen=True)
class Need:
    """A condition under which an option has an effect.

    Attributes:
      holds: whether the option has an effect in a run with this configuration.
      reason: why it has no effect where `holds` is false, written to follow the option's name in a sentence; or a function
        of the configuration that returns this text.
      remedy: what would give it an effect, as an imperative.
      part: the part of the run that decides this: "data", "algorithm" or "growth"; None if no such part does. Where that
        part was given as an object in Python, the option is not refused.
    """

    holds: Callable[[Any], bool]
    reason: str | Callable[[Any], str]
    remedy: str
    part: str | None = None

    def reason_in(self, config: Any) -> str:
        """Why the option has no effect with this configuration."""
        return self.reason if isinstance(self.reason, str) else self.reason(config)


def option(
    default: Any = dataclasses.MISSING,
    *,
    choices: Iterable[str] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    within: str | None = None,
    remedy: str | None = None,
    of: str | None = None,
    when: Mapping[str, tuple[str, ...]] | None = None,
    also: Mapping[str, tuple[str, ...]] | None = None,
    beside: str | None = None,
    needs: Sequence[Need] = (),
    execution: bool = False,
    path: bool = False,
    verbatim: bool = False,
    operand: bool = False,
    each_once: bool = False,
) -> Any:
    """A dataclass field that is an option. For a list, the bounds apply to every value, and the list must not be empty.

    Args:
      default: the value if the option is not given; without a default it must be given.
      choices: the allowed names, which users may write in upper or lower case.
      at_least: the smallest allowed number.
      above: the number that it must exceed.
      at_most: the largest allowed number, so that a typing error is refused before arrays are allocated.
      within: the interval of allowed numbers, such as "[0, 1)".
      remedy: what the error message recommends, such as "0.05 is usual"; by default the bound itself.
      of: "algorithm" or "growth" for an option that only methods with its name in their `reads` use.
      when: by the names of other options, the values under which this option is read.
      also: by the names of other options, the values under which this option is read whatever else is declared.
      beside: an option that excludes this one: this one has an effect only if the other is None or is not read.
      needs: further conditions under which it has an effect.
      execution: whether it changes how a run is executed, but not what it computes.
      path: whether it names a file or folder, or data or a model that may be one.
      verbatim: whether its flag takes the next word literally, so that quotes, commas and `none` have no special meaning.
      operand: whether it is a positional argument.
      each_once: whether it is a list without duplicates.
    """
    declared: dict[str, Any] = {"choices": None if choices is None else tuple(choices), "needs": tuple(needs) or None}
    declared |= {"at_least": at_least, "above": above, "at_most": at_most, "within": within, "remedy": remedy}
    declared |= {"of": of, "when": when, "also": also, "beside": beside}
    metadata = {name: value for name, value in declared.items() if value is not None}
    marks = {"execution": execution, "path": path, "verbatim": verbatim, "operand": operand, "each_once": each_once}
    return dataclasses.field(default=default, metadata=metadata | {name: True for name, mark in marks.items() if mark})


def execution(default: Any, **declared: Any) -> Any:
    """An `option` that changes how a run is executed but not what it computes.

    Args:
      default: the value if the option is not given.
      declared: further arguments of `option`.
    """
    return option(default, execution=True, **declared)


def path(default: Any = dataclasses.MISSING) -> Any:
    """An `option` that names a file or folder, or data or a model that may be one.

    Args:
      default: the value if the option is not given; without a default it must be given.
    """
    return option(default, path=True)


def verbatim(default: Any = dataclasses.MISSING) -> Any:
    """An `option` whose flag takes the next word literally.

    Args:
      default: the value if the option is not given; without a default it must be given.
    """
    return option(default, verbatim=True)


def operand(*, path: bool = False) -> Any:
    """An `option` that is a positional argument, and must be given.

    Args:
      path: whether it names a file or folder.
    """
    return option(operand=True, path=path)


# ---- the options of a dataclass --------------------------------------------------------------------------------------


def own_fields(group: type) -> list[dataclasses.Field[Any]]:
    """The fields that a dataclass declares itself, without inherited ones.

    Args:
      group: the dataclass.
    """
    own = inspect.get_annotations(group)
    return [field for field in dataclasses.fields(group) if field.name in own]


def identity_fields(options: Any) -> dict[str, Any]:
    """The values of the fields that decide what is computed, by name.

    Args:
      options: an instance of an options dataclass.
    """
    return {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if not field.metadata.get("execution", False)
    }


def option_group(group: type[Group], options: Any) -> Group:
    """The options of one group, taken from an object that has those of several groups.

    Args:
      group: the dataclass of the group.
      options: an object that has all fields of the group.
    """
    return group(**{field.name: getattr(options, field.name) for field in dataclasses.fields(group)})  # type: ignore[arg-type]


@functools.cache
def option_texts(group: type) -> dict[str, str]:
    """The docstring under each field that a dataclass declares itself, by field name, each as one line.

    Args:
      group: the dataclass.
    """
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(group))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            texts[statement.target.id] = " ".join(str(following.value.value).split())
    return texts


# ---- checks ----------------------------------------------------------------------------------------------------------


def check_options(options: Any) -> None:
    """Raise `InputError` for the first field whose value its declaration does not allow.

    Args:
      options: an instance of an options dataclass.
    """
    for field in dataclasses.fields(options):
        check_option(field, getattr(options, field.name))


def check_option(field: dataclasses.Field[Any], value: Any) -> None:
    """Raise `InputError` unless a value is among the field's choices and within its bounds.

    Args:
      field: the option.
      value: its value, or a tuple of values for a list; None and names such as auto are not checked against bounds.
    """
    declared = field.metadata
    values = value if isinstance(value, tuple) else (value,)
    for name in values if "choices" in declared else ():
        if name is not None and name not in declared["choices"]:
            raise unknown_name(field.name, name, declared["choices"])
    bounded = declared.keys() & {"at_least", "above", "within"}
    if not values and (bounded or field.default):
        which = f" of {', '.join(declared['choices'])}" if "choices" in declared else ""
        which = f", each {bounds_of(declared)}" if bounded else which
        raise InputError(f"{field.name} is empty; give one value or more{which}.")
    if declared.get("each_once", False) and len(set(values)) < len(values):
        twice = next(each for each in values if values.count(each) > 1)
        raise InputError(f"{field.name} {','.join(map(str, values))} holds {twice} twice; give each once.")
    for number in values:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        fault = _fault(declared, number)
        if fault is not None:
            shown = ",".join(map(str, values))
            raise InputError(f"{field.name} {shown} {'is' if len(values) == 1 else f'has {number}, which is'} {fault}.")


def _fault(declared: Mapping[str, Any], number: float) -> str | None:
    """What is wrong with a number and what to use instead; None if it is within its bounds."""
    if isinstance(number, float) and not math.isfinite(number):
        return f"not finite; {declared.get('remedy', 'give a number such as 1e-4')}"
    if "within" in declared and not _interval(declared["within"]).holds(number):
        return f"outside {declared['within']}; {declared.get('remedy', 'give a number in it')}"
    least, above = declared.get("at_least"), declared.get("above")
    if least is not None and number < least:
        kind = {1: "not positive", 0: "negative"}.get(least, f"below {least}")
        return f"{kind}; {declared.get('remedy', f'use {least} or more')}"
    if above is not None and number <= above:
        kind = "not positive" if above == 0 else f"not above {above}"
        return f"{kind}; {declared.get('remedy', f'use a number above {above}')}"
    most = declared.get("at_most", LARGEST if isinstance(number, int) else math.inf)
    if number > most:
        return f"too large; use {most:,} or less"
    return None


@dataclass(frozen=True)
class _Interval:
    """An interval of numbers; each end is included or excluded."""

    lowest: float
    highest: float
    with_lowest: bool
    with_highest: bool

    def holds(self, number: float) -> bool:
        above = number >= self.lowest if self.with_lowest else number > self.lowest
        return above and (number <= self.highest if self.with_highest else number < self.highest)


@functools.cache
def _interval(text: str) -> _Interval:
    """An interval from its notation, such as [0, 1) or [0, 2^32)."""
    found = re.fullmatch(r"([\[(])(.+), (.+)([\])])", text)
    assert found is not None, text
    lowest, highest = (
        float(base) ** float(power or 1) for base, _, power in (end.partition("^") for end in found.group(2, 3))
    )
    return _Interval(lowest, highest, found[1] == "[", found[4] == "]")


def bounds_of(declared: Mapping[str, Any]) -> str:
    """The numbers that a declaration allows, as text; empty if it declares no bounds.

    Args:
      declared: the metadata of a field.
    """
    if "within" in declared:
        return f"in {declared['within']}"
    least, above, most = (declared.get(name) for name in ("at_least", "above", "at_most"))
    if least is not None:
        return f"{least:,} to {most:,}" if most is not None else f"{least:,} or more"
    if above is not None:
        return f"above {above:,}"
    return "" if most is None else f"at most {most:,}"


def check_paths(options: Any) -> None:
    """Raise `InputError` for a path option whose text cannot be the name of a file or folder.

    Args:
      options: an instance of an options dataclass.
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.metadata.get("path", False) and value is not None:
            for one in value if isinstance(value, tuple) else (value,):
                checked_path(one, field.name)


# ---- names -----------------------------------------------------------------------------------------------------------


def closest(name: str, known: Iterable[str], otherwise: str) -> str:
    """The end of an error message about an unknown name: a suggestion if a known name is similar, otherwise `otherwise`.

    Args:
      name: the unknown name.
      known: the known names.
      otherwise: the end if no known name is similar.
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{close[0]}'?" if close else otherwise


def known_name(kind: str, name: Any, known: Iterable[str], otherwise: str = "") -> str:
    """The known name that equals a name when upper and lower case are ignored.

    Args:
      kind: what is named, for the error message.
      name: the name to look up.
      known: the known names.
      otherwise: what can be given instead of one of them, for the error message.

    Raises:
      InputError: there is no such name.
    """
    by_case = {each.lower(): each for each in known}
    if not isinstance(name, str) or name.lower() not in by_case:
        raise unknown_name(kind, name, by_case.values(), otherwise)
    return by_case[name.lower()]


def unknown_name(kind: str, name: Any, known: Iterable[str], otherwise: str = "") -> InputError:
    """The error about an unknown name; it lists the known names and suggests the most similar one.

    Args:
      kind: what is named.
      name: the unknown name.
      known: the known names.
      otherwise: what can be given instead of one of them.
    """
    shown, names = printable(str(name)), list(known)
    close = difflib.get_close_matches(shown.lower(), names, n=1)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    return InputError(f"{kind} '{shown}' is unknown; choose from {', '.join(names)}{hint}{otherwise and ', '}{otherwise}.")
