"""Finds the modules to which the names, endings and regular expressions of an adapter's configuration refer."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from devft_jax.errors import InputError
from devft_jax.models.huggingface.peft.expressions import full_matches
from devft_jax.models.huggingface.safetensors import shown

T = TypeVar("T")


class Matcher:
    """Matches fields of a configuration with a model's modules.

    Fields are read first and give functions to call after `match`, which matches all expressions at once.

    Args:
      modules: paths of the model's modules.
      path: path of the configuration, for messages.
    """

    def __init__(self, modules: Sequence[str], path: Path) -> None:
        self._modules, self._path = modules, path
        self._expressions: list[str] = []
        self._shown: list[str] = []
        self._found: list[list[int]] = []

    def endings(
        self, fields: Mapping[str, Any], name: str, checked: Callable[[str, Any, Path], T]
    ) -> Callable[[], dict[str, T]]:
        """Values by module, for a field that maps regular expressions to values; they match the end of a path, after a dot.

        The first expression that matches is used.

        Args:
          fields: fields of the configuration.
          name: name of the field.
          checked: validates a value of the field, given its name, the value and the path; raises an error if it is invalid.

        Raises:
          InputError: the field does not map modules, or a value is invalid.
        """
        pattern = fields.get(name) or {}
        if not isinstance(pattern, dict):
            raise InputError(f"{name} {shown(pattern)} in {self._path} does not map modules to numbers; correct it.")
        values = {key: checked(f"{name} of {key}", value, self._path) for key, value in pattern.items()}
        # A single name needs no matching: it is the last part of a path.
        asked = {key: self._ask(name, key, rf"(.*\.)?({key})$") for key in values if not re.fullmatch(r"\w+", key)}

        def by_module() -> dict[str, T]:
            last: dict[str, list[str]] = {}
            for module in self._modules:
                last.setdefault(module.rpartition(".")[2], []).append(module)
            found: dict[str, T] = {}
            for key, value in values.items():
                for module in self._matched(asked[key]) if key in asked else last.get(key, ()):
                    found.setdefault(module, value)
            return found

        return by_module

    def named(self, fields: Mapping[str, Any], name: str) -> Callable[[], set[str]] | None:
        """Modules of a field that is a list of endings or a regular expression for whole paths; None if it is empty.

        Args:
          fields: fields of the configuration.
          name: name of the field.

        Raises:
          InputError: the field does not name modules.
        """
        names = fields.get(name)
        if names in (None, "all-linear", [], ""):
            return None
        if isinstance(names, str):
            place = self._ask(name, names, names)
            return lambda: set(self._matched(place))
        if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
            raise InputError(f"{name} {shown(names)} in {self._path} does not name modules; correct it.")
        chosen = set(names)
        return lambda: {module for module in self._modules if not chosen.isdisjoint(_endings(module))}

    def match(self) -> None:
        """Match all expressions of the fields that were read."""
        self._found = full_matches(self._expressions, self._modules, self._shown)

    def _ask(self, field: str, text: str, expression: str) -> int:
        self._expressions.append(expression)
        self._shown.append(f"{field} {shown(text)} in {self._path}")
        return len(self._expressions) - 1

    def _matched(self, place: int) -> list[str]:
        return [self._modules[position] for position in self._found[place]]


def _endings(module: str) -> Iterator[str]:
    """A module's path, and its ends after each dot."""
    yield module
    while "." in module:
        module = module.partition(".")[2]
        yield module
