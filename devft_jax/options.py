"""How a room marks an option: part of what is computed, or only of how it is executed; and what else its flag must know.

Every room owns its options as a frozen dataclass whose fields become command-line flags and keys of a configuration file.
A field is *identity* by default: it decides what is computed, and a folder may only be resumed by a run that agrees on it.
`execution(default)` marks the others (devices, chunk sizes, logging), which may change between a stop and a resume. The
docstring under a field is its text in `--help`.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import textwrap
from collections.abc import Iterable
from typing import Any, TypeVar

from devft_jax.errors import InputError
from devft_jax.files import checked_path, printable

Room = TypeVar("Room")


def execution(default: Any, *, path: bool = False) -> Any:
    """A dataclass field that changes how a run is executed but not what it computes; `path` marks a file's or folder's."""
    return dataclasses.field(default=default, metadata={"execution": True, "path": path})


def path(default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that names a file or folder, or data or a model that may be one."""
    return dataclasses.field(default=default, metadata={"path": True})


def verbatim(default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field whose flag takes the next word as it is: no quotes, commas or `none` in it mean anything."""
    return dataclasses.field(default=default, metadata={"verbatim": True})


def operand(*, path: bool = False) -> Any:
    """A dataclass field that is a word without a flag, and must be given."""
    return dataclasses.field(metadata={"operand": True, "path": path})


def identity_fields(options: Any) -> dict[str, Any]:
    """The fields of an options dataclass that decide what is computed, by name."""
    return {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if not field.metadata.get("execution", False)
    }


def room_of(room: type[Room], options: Any) -> Room:
    """One room's options out of a dataclass that has all of its fields."""
    return room(**{field.name: getattr(options, field.name) for field in dataclasses.fields(room)})  # type: ignore[arg-type]


@functools.cache
def option_texts(room: type) -> dict[str, str]:
    """What the docstring under each field of an options dataclass says, by name, in one line each."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(room))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            texts[statement.target.id] = " ".join(str(following.value.value).split())
    return texts


def check_paths(options: Any) -> None:
    """Raise `InputError` for a field that is a path by which no file or folder can be named."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.metadata.get("path", False) and value is not None:
            for one in value if isinstance(value, tuple) else (value,):
                checked_path(one, field.name)


def closest(name: str, known: Iterable[str], otherwise: str) -> str:
    """How a sentence about an unknown name ends: with the known one that is meant, or with `otherwise`."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{close[0]}'?" if close else otherwise


def known_name(kind: str, name: Any, known: Iterable[str]) -> str:
    """The known name that is meant, which may be written in any case.

    Args:
      kind: what is named, for the sentence.

    Raises:
      InputError: there is none.
    """
    by_case = {each.lower(): each for each in known}
    if not isinstance(name, str) or name.lower() not in by_case:
        raise unknown_name(kind, name, by_case.values())
    return by_case[name.lower()]


def unknown_name(kind: str, name: Any, known: Iterable[str]) -> InputError:
    """What is said of a name that does not exist: the known ones, and the one that may be meant."""
    shown, names = printable(str(name)), list(known)
    close = difflib.get_close_matches(shown.lower(), names, n=1)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    return InputError(f"{kind} '{shown}' is unknown; choose from {', '.join(names)}{hint}.")
