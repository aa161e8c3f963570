"""Options: how they are declared, beside what they are for, and what is checked from the declaration alone.

Every room owns its options as a frozen dataclass, as does every method with options of its own. Their fields become flags of
the command line and keys of a configuration file, under the same flat names. The docstring under a field is its text in
`--help`, and `option` says the rest:

    rank: int = option(32, at_least=1, at_most=2**16)
    dropout: float = option(0.05, within="[0, 1)", remedy="0.05 is usual")
    optimizer: str = option("adamw", choices=("adamw", "sgd"))
    beta1: float = option(0.9, within="[0, 1)", when={"optimizer": ("adamw",)})
    devices: int | None = execution(None, at_least=1)

A field is *identity* by default: it decides what is computed, and a folder may only be resumed by a run that agrees on it.
`execution` marks the others (devices, chunk sizes, logging), which may change between a stop and a resume.

A declaration is the field's metadata, of plain values under the names of `option`'s arguments. So `devft_jax.developmental`,
which imports nothing else of this package, declares its options by `dataclasses.field`.
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

Room = TypeVar("Room")

LARGEST = 2**53
"""Of a whole number whose option names no bound of its own."""


@dataclass(frozen=True)
class Need:
    """A condition under which an option has an effect.

    Attributes:
      holds: whether the option has an effect in a run of this configuration.
      reason: why it has none where it does not hold, to follow the option's name in a sentence; or a function of the
        configuration that says so.
      remedy: what gives it an effect, in the imperative.
      part: of the run that decides, "data", "algorithm" or "growth"; None for options of no such part. Nothing is refused
        where that part was given as an object.
    """

    holds: Callable[[Any], bool]
    reason: str | Callable[[Any], str]
    remedy: str
    part: str | None = None

    def reason_in(self, config: Any) -> str:
        """Why the option has no effect under this configuration."""
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
    beside: str | None = None,
    needs: Sequence[Need] = (),
    execution: bool = False,
    path: bool = False,
    verbatim: bool = False,
    operand: bool = False,
) -> Any:
    """A dataclass field that is an option. Bounds are those of every value where the option is a list, which is not empty.

    Args:
      default: its value where it is not given; without one it must be given.
      choices: names that it may have, which people may write in any case.
      at_least: the smallest number that it may be.
      above: what it must be larger than.
      at_most: the largest size that is believed, so that a slip of the keyboard is answered before arrays are made.
      within: the interval that it must lie in, such as "[0, 1)".
      remedy: what a sentence about a wrong value recommends, such as "0.05 is usual"; by default the bound itself.
      of: "algorithm" or "growth" for an option that only those methods read which name it among their `reads`.
      when: values of other options under which alone it is read, by their names.
      beside: an option beside which it has no effect: it must be None, or not be read itself.
      needs: further conditions under which it has an effect.
      execution: whether it changes how a run is executed, but not what it computes.
      path: whether it names a file or folder, or data or a model that may be one.
      verbatim: whether its flag takes the next word as it is, in which no quotes, commas or `none` mean anything.
      operand: whether it is a word without a flag.
    """
    declared: dict[str, Any] = {"choices": None if choices is None else tuple(choices), "needs": tuple(needs) or None}
    declared |= {"at_least": at_least, "above": above, "at_most": at_most, "within": within, "remedy": remedy}
    declared |= {"of": of, "when": when, "beside": beside}
    metadata = {name: value for name, value in declared.items() if value is not None}
    marks = {"execution": execution, "path": path, "verbatim": verbatim, "operand": operand}
    return dataclasses.field(default=default, metadata=metadata | {name: True for name, mark in marks.items() if mark})


def execution(default: Any, **declared: Any) -> Any:
    """An `option` that changes how a run is executed but not what it computes.

    Args:
      default: its value where it is not given.
      declared: further arguments of `option`.
    """
    return option(default, execution=True, **declared)


def path(default: Any = dataclasses.MISSING) -> Any:
    """An `option` that names a file or folder, or data or a model that may be one.

    Args:
      default: its value where it is not given; without one it must be given.
    """
    return option(default, path=True)


def verbatim(default: Any = dataclasses.MISSING) -> Any:
    """An `option` whose flag takes the next word as it is.

    Args:
      default: its value where it is not given; without one it must be given.
    """
    return option(default, verbatim=True)


def operand(*, path: bool = False) -> Any:
    """An `option` that is a word without a flag, and must be given.

    Args:
      path: whether it names a file or folder.
    """
    return option(operand=True, path=path)


# ---- the options of a dataclass --------------------------------------------------------------------------------------


def own_fields(room: type) -> list[dataclasses.Field[Any]]:
    """The fields that a dataclass declares itself, without those that it inherits.

    Args:
      room: the dataclass.
    """
    own = inspect.get_annotations(room)
    return [field for field in dataclasses.fields(room) if field.name in own]


def identity_fields(options: Any) -> dict[str, Any]:
    """The values that decide what is computed, by name.

    Args:
      options: an instance of an options dataclass.
    """
    return {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if not field.metadata.get("execution", False)
    }


def room_of(room: type[Room], options: Any) -> Room:
    """One room's options out of those of several.

    Args:
      room: the dataclass of the room.
      options: an object that has all of its fields.
    """
    return room(**{field.name: getattr(options, field.name) for field in dataclasses.fields(room)})  # type: ignore[arg-type]


@functools.cache
def option_texts(room: type) -> dict[str, str]:
    """What the docstring under each field that a dataclass declares itself says, by name, in one line each.

    Args:
      room: the dataclass.
    """
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(room))).body
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
    """Raise `InputError` for the first field whose value is not what its declaration allows.

    Args:
      options: an instance of an options dataclass.
    """
    for field in dataclasses.fields(options):
        check_option(field, getattr(options, field.name))


def check_option(field: dataclasses.Field[Any], value: Any) -> None:
    """Raise `InputError` unless a value is among the field's choices and within its bounds.

    Args:
      field: the option.
      value: its value, or values where it is a list; None and a name such as auto have no bounds.
    """
    declared = field.metadata
    values = value if isinstance(value, tuple) else (value,)
    for name in values if "choices" in declared else ():
        if name is not None and name not in declared["choices"]:
            raise unknown_name(field.name, name, declared["choices"])
    bounded = declared.keys() & {"at_least", "above", "within"}
    if bounded and not values:
        raise InputError(f"{field.name} is empty; give one value or more, each {bounds_of(declared)}.")
    for number in values:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        fault = _fault(declared, number)
        if fault is not None:
            shown = ",".join(map(str, values))
            raise InputError(f"{field.name} {shown} {'is' if len(values) == 1 else f'has {number}, which is'} {fault}.")


def _fault(declared: Mapping[str, Any], number: float) -> str | None:
    """What is wrong with a number and what to give instead; None where it is within its bounds."""
    if isinstance(number, float) and not math.isfinite(number):
        return "not finite; give a number such as 1e-4"
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
    """Numbers between two ends, each of which may belong to it."""

    lowest: float
    highest: float
    with_lowest: bool
    with_highest: bool

    def holds(self, number: float) -> bool:
        above = number >= self.lowest if self.with_lowest else number > self.lowest
        return above and (number <= self.highest if self.with_highest else number < self.highest)


@functools.cache
def _interval(text: str) -> _Interval:
    """An interval as it is written, such as [0, 1) or [0, 2^32)."""
    found = re.fullmatch(r"([\[(])(.+), (.+)([\])])", text)
    assert found is not None, text
    lowest, highest = (
        float(base) ** float(power or 1) for base, _, power in (end.partition("^") for end in found.group(2, 3))
    )
    return _Interval(lowest, highest, found[1] == "[", found[4] == "]")


def bounds_of(declared: Mapping[str, Any]) -> str:
    """The numbers that a declaration allows, in words; empty where it names no bounds.

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
    """Raise `InputError` for a field that is a path by which no file or folder can be named.

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
    """How a sentence about an unknown name ends: with the known one that is meant, or with `otherwise`.

    Args:
      name: as it was written.
      known: the names that there are.
      otherwise: the end where none of them is close.
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{close[0]}'?" if close else otherwise


def known_name(kind: str, name: Any, known: Iterable[str]) -> str:
    """The known name that is meant, which may be written in any case.

    Args:
      kind: what is named, for the sentence.
      name: as it was written.
      known: the names that there are.

    Raises:
      InputError: there is none.
    """
    by_case = {each.lower(): each for each in known}
    if not isinstance(name, str) or name.lower() not in by_case:
        raise unknown_name(kind, name, by_case.values())
    return by_case[name.lower()]


def unknown_name(kind: str, name: Any, known: Iterable[str]) -> InputError:
    """The sentence about a name that does not exist: the known ones, and the one that may be meant.

    Args:
      kind: what is named.
      name: as it was written.
      known: the names that there are.
    """
    shown, names = printable(str(name)), list(known)
    close = difflib.get_close_matches(shown.lower(), names, n=1)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    return InputError(f"{kind} '{shown}' is unknown; choose from {', '.join(names)}{hint}.")
