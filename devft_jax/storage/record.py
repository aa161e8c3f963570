"""A record: a dataclass that is written to a JSON file under the names of its attributes, and read from it.

`to_plain` gives the values to write, `from_plain` reads them: an unknown name is ignored, a missing name gets its
attribute's default; a missing name without a default, or a value of another type, raises an `InputError`.
"""

import dataclasses
import functools
import types
import typing
from pathlib import Path
from typing import Any, ClassVar, Self

from devft_jax.errors import InputError

OMITTED = {"omitted": True}
"""Marks an attribute that is not written if it is None."""
INLINE = {"inline": True}
"""Marks an attribute whose entries are written directly into the record that contains it."""


class Record:
    """A dataclass that is written to a JSON file under the names of its attributes."""

    where: ClassVar[str]
    """What the record is, for the message about one that cannot be read."""

    def to_plain(self) -> dict[str, Any]:
        """The record as plain values by name, in the order of its attributes."""
        plain: dict[str, Any] = {}
        for each in dataclasses.fields(self):  # type: ignore[arg-type]
            value = _plain(getattr(self, each.name))
            if each.metadata.get("inline"):
                plain |= value
            elif value is not None or not each.metadata.get("omitted"):
                plain[each.name] = value
        return plain

    @classmethod
    def from_plain(cls, plain: Any, path: str | Path, where: str | None = None) -> Self:
        """Make the record from plain values.

        Args:
          plain: the contents of a JSON file.
          path: the run's folder, for messages.
          where: what the record is, if not `cls.where`.

        Raises:
          InputError: a name without a default is missing, or has a value of another type.
        """
        where = where or cls.where
        if not isinstance(plain, dict):
            raise unusable(where, "object", path)
        hints, values = _hints(cls), {}  # type: ignore[arg-type]
        for each in dataclasses.fields(cls):  # type: ignore[arg-type]
            if each.metadata.get("inline"):
                values[each.name] = cls._inline(each.name, hints[each.name], plain, path)
            elif each.name in plain:
                try:
                    values[each.name] = _read(hints[each.name], plain[each.name], path)
                except TypeError:
                    raise unusable(where, each.name, path) from None
            elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
                raise unusable(where, each.name, path)
        return cls(**values)

    @classmethod
    def _inline(cls, name: str, hint: Any, plain: dict[str, Any], path: str | Path) -> Any:
        """The value of an inline attribute, taken from the names around it."""
        return _read(hint, plain, path)


def unusable(where: str, name: str, path: str | Path) -> InputError:
    """The error for a record that cannot be read.

    Args:
      where: the record.
      name: name of the value that is missing or has another type.
      path: the run's folder.
    """
    return InputError(
        f"the run in {path} was written by another version of devft or is damaged ({where} lacks a usable {name}); run it "
        "again in another folder to report on it."
    )


@functools.cache
def _hints(record: type) -> dict[str, Any]:
    return typing.get_type_hints(record)


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_plain()
    if isinstance(value, list) and value and isinstance(value[0], Record):
        return [each.to_plain() for each in value]
    return value


def _read(hint: Any, value: Any, path: str | Path) -> Any:
    """A value of an attribute's type; raises `TypeError` if it has another type."""
    of, arguments = typing.get_origin(hint), typing.get_args(hint)
    if of is types.UnionType:
        [kind] = [each for each in arguments if each is not type(None)]
        return None if value is None else _read(kind, value, path)
    if of in (list, dict):
        if not isinstance(value, of):
            raise TypeError
        if of is dict:
            return {name: _read(arguments[1], each, path) for name, each in value.items()}
        return [_read(arguments[0], each, path) for each in value]
    if issubclass(hint, Record):
        return hint.from_plain(value, path)
    if not isinstance(value, int | float if hint is float else hint):
        raise TypeError
    return value
