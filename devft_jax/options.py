"""How a room marks an option: part of what is computed, or only of how it is executed.

Every room owns its options as a frozen dataclass whose fields become command-line flags and keys of a configuration file.
A field is *identity* by default: it decides what is computed, and a folder may only be resumed by a run that agrees on it.
`execution(default)` marks the others (devices, chunk sizes, logging), which may change between a stop and a resume. The
docstring under a field is its text in `--help`.
"""

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

Room = TypeVar("Room")


def execution(default: Any) -> Any:
    """A dataclass field that changes how a run is executed but not what it computes."""
    return dataclasses.field(default=default, metadata={"execution": True})


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


def flags_of(room: type, start: Any, without: Sequence[str] = ()) -> Any:
    """An options dataclass as the parser takes it: the fields of `room` with `start`'s values as their defaults.

    Fields named in `without` are left out.
    Its texts are handed over whole, because a parser that reads them from the source keeps the source's line ends.
    """
    import tyro

    texts = option_texts(room)
    kinds = {name: kind for name, kind in typing.get_type_hints(room).items() if name not in without}

    def default_of(name: str) -> Any:
        # A mapping out of a configuration file may not be a plain default.
        return dataclasses.field(default_factory=lambda: getattr(start, name))

    fields = [(name, Annotated[kind, tyro.conf.arg(help=texts[name])], default_of(name)) for name, kind in kinds.items()]
    return dataclasses.make_dataclass(room.__name__, fields, frozen=True, kw_only=True, namespace={"__doc__": room.__doc__})
