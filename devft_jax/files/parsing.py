"""Parses JSON and YAML from outside into plain values; an error is one sentence with file and line.

Both parsers refuse input that libraries accept but that causes errors later: a name given twice in one object (the last
would win silently), integers too long to be numbers, unpaired surrogates (which cannot be written as text), endless nesting.
YAML is read by its 1.2 core schema, in which `no` and `2026-02-30` are text and `1e-4` is a number, so that a value means
the same in a file as after a flag.
"""

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from devft_jax.errors import InputError
from devft_jax.files.shown import printable

MOST_BYTES = 256 * 2**20
"""Most bytes of a text file that is read as a whole, by default."""
MOST_YAML_VALUES = 100_000
"""Most values of a YAML file, including everything that its aliases repeat."""
# Python refuses to parse longer integers by default, because the time grows with the square.
MOST_DIGITS = 4300

_LONG_INTEGER = re.compile(rf"\d{{{MOST_DIGITS + 1},}}")
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]')
_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def read_text(path: Path, what: str = "the file", most: int = MOST_BYTES) -> str:
    """The text of a regular file, UTF-8 with or without a byte order mark.

    Args:
      path: a file; a pipe or a folder is refused without waiting for it.
      what: what the file is, for messages, such as "the configuration".
      most: the largest size in bytes.

    Raises:
      InputError: the file cannot be read, is too large or is not text.
    """
    return decoded(_read_bytes(path, what, most), _named(path, what))


def read_json(path: Path, what: str = "the file", most: int = MOST_BYTES) -> Any:
    """The value in a JSON file; see `read_text` and `parse_json`.

    Args:
      path: as in `read_text`.
      what: as in `read_text`.
      most: as in `read_text`.
    """
    return parse_json(_read_bytes(path, what, most), _named(path, what))


def read_yaml(path: Path, what: str = "the file", most: int = MOST_BYTES) -> Any:
    """The value in a YAML or JSON file; see `read_text` and `parse_yaml`.

    Args:
      path: as in `read_text`.
      what: as in `read_text`.
      most: as in `read_text`.
    """
    return parse_yaml(read_text(path, what, most), _named(path, what))


def _named(path: Path, what: str) -> str:
    return f"{what} {printable(str(path))}" if what != "the file" else printable(str(path))


def _read_bytes(path: Path, what: str, most: int) -> bytes:
    name = _named(path, what)
    try:
        # Without the flag, opening a pipe waits for its writer.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"{name} is not a regular file; give the path of a text file.")
            if found.st_size > most:
                raise InputError(f"{name} has {found.st_size:,} bytes, more than the limit of {most:,}; shorten it.")
            return file.read()
    except InputError:
        raise
    except IsADirectoryError as error:
        raise InputError(f"{name} is a folder; give the path of a text file.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name} cannot be read ({reason}); give the path of a text file.") from error


def decoded(content: bytes, name: str, first_line: int | None = 1) -> str:
    """UTF-8 text with or without a byte order mark; an error names line and byte.

    Args:
      content: UTF-8, with or without a byte order mark.
      name: where it was read from, for messages.
      first_line: the line number of the content's first line there; None if there are no lines.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = _place(name, first_line, content[: error.start].count(b"\n"))
        raise InputError(f"{where} is not UTF-8 text (byte 0x{content[error.start]:02x}); save it as UTF-8.") from error


def _place(name: str, first_line: int | None, lines_before: int) -> str:
    return name if first_line is None else f"{name}:{first_line + lines_before}"


def parse_json(text: str | bytes, where: str, first_line: int | None = 1) -> Any:
    """The value in JSON text.

    Args:
      text: text of one value; bytes are UTF-8.
      where: where it was read from, for messages, such as the file's name.
      first_line: the line number of the text's first line there; None if there are no lines.

    Raises:
      InputError: the text is not valid JSON, or programs would read it differently.
    """
    text = decoded(text, where, first_line) if isinstance(text, bytes) else text
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except _NameTwiceError as error:
        name, start = _second_use(text)
        place = _place(where, first_line, text.count("\n", 0, start))
        raise InputError(f"{place} names {printable(repr(name))} twice in one object; keep one of them.") from error
    except json.JSONDecodeError as error:
        line, column = _position(text, error)
        place = _place(where, first_line, line)
        raise InputError(f"{place} is not valid JSON ({error.msg}, column {column}); correct it.") from error
    except RecursionError as error:
        raise InputError(f"{_place(where, first_line, 0)} is nested too deeply; make it flatter.") from error
    except ValueError as error:
        raise _too_long(text, where, first_line) from error
    if _SURROGATE.search(text) or _SURROGATE_ESCAPE.search(text):
        _check_surrogates(text, where, first_line)
    return value


def json_objects(text: str, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of JSON lines, empty lines left out, each with its place as `file:line`.

    Args:
      text: the lines. Only a line feed ends one: JSON may hold other separators of lines in its strings.
      where: where it was read from, for messages, such as the file's name.

    Raises:
      InputError: a line is no JSON object; names the line.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            value = parse_json(line, where, number)
            if not isinstance(value, dict):
                raise InputError(f"{where}:{number} is no JSON object; correct the line.")
            yield f"{where}:{number}", value


class _NameTwiceError(Exception):
    """An object has the same name twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _NameTwiceError
    return found


def _position(text: str, error: json.JSONDecodeError) -> tuple[int, int]:
    """Lines before an error and its column; the error of truncated text is at its end, not on the empty line after it."""
    at = min(error.pos, len(text.rstrip()))
    return text.count("\n", 0, at), at - (text.rfind("\n", 0, at) + 1) + 1


def _strings_and_marks(text: str) -> Iterator[tuple[str, int]]:
    """The strings and the punctuation of valid JSON, each with its position."""
    return ((found[0], found.start()) for found in _JSON_TOKEN.finditer(text))


def _second_use(text: str) -> tuple[str, int]:
    """The first name that an object has twice, and its position."""
    open_objects: list[set[str] | None] = []
    last = ("", 0)
    for token, start in _strings_and_marks(text):
        if token in "{[":
            open_objects.append(set() if token == "{" else None)
        elif token in "}]":
            open_objects.pop()
        elif token == ":" and (names := open_objects[-1]) is not None:
            name = json.loads(last[0], strict=False)
            if name in names:
                return name, last[1]
            names.add(name)
        last = (token, start)
    raise AssertionError("no name is used twice")


def _too_long(text: str, where: str, first_line: int | None) -> InputError:
    found = _LONG_INTEGER.search(text)
    start, digits = (found.start(), len(found[0])) if found else (0, MOST_DIGITS + 1)
    place = _place(where, first_line, text.count("\n", 0, start))
    return InputError(f"{place} holds an integer of {digits:,} digits; write it in quotes or shorten it.")


def _check_surrogates(text: str, where: str, first_line: int | None) -> None:
    for token, start in _strings_and_marks(text):
        if token.startswith('"') and (found := _SURROGATE.search(json.loads(token, strict=False))):
            place = _place(where, first_line, text.count("\n", 0, start))
            raise InputError(f"{place} holds {printable(found[0])}, an unpaired surrogate; correct the text there.")


def parse_yaml(text: str, where: str) -> Any:
    """The value in YAML (1.2 core schema) or JSON text.

    Args:
      text: text of one document.
      where: where it was read from, for messages, such as the file's name.

    Raises:
      InputError: the text is not valid YAML, has a name twice, or expands without limit through aliases.
    """
    import yaml

    from devft_jax.files.yaml_loader import CoreLoader, check_nodes

    try:
        loader = CoreLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        check_nodes(node, where, MOST_YAML_VALUES)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = where if mark is None else f"{where}:{mark.line + 1}"
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "not one document"
        raise InputError(f"{place} is not valid YAML or JSON ({printable(str(reason))}); correct it.") from error
    except RecursionError as error:
        raise InputError(f"{where} is nested too deeply; make it flatter.") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise _too_long(text, where, 1) from error
