"""Conversion of what users write to an option's type, the same for flags, configuration files and arms.

A value comes as text (after a flag, in an arm) or as a YAML or JSON value (number, boolean, list, null), and means the same
in both forms:

    4,8,16   [4, 8, 16]   "4 8 16"       a list, also as text in a file
    1e-4   1E-4   0.0001                 a number; 1e3 is also a valid whole number
    true yes on   false no off           a boolean, in upper or lower case
    none   null                          no value, for an option that may have none
    a.jsonl,b.jsonl                      several names, unless a file of exactly this name exists

Text in JSON quotes is taken literally: `"a,b.jsonl"` after a flag is a name with a comma. So is each text in a JSON list or
object. `as_words` writes a value so that `from_words` can read it.
"""

import glob
import json
import os
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from devft_jax.errors import InputError
from devft_jax.files import parse_json, printable

NOTHING = ("none", "null")
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")

MOST_DIGITS = 40
"""Most digits of a whole number."""


MOST_ITEMS = 10_000
"""Most values of one list."""


def kinds_of(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def choices_of(annotation: Any) -> tuple[str, ...]:
    """The literal texts that the annotation allows."""
    return tuple(
        text for kind in kinds_of(annotation) if typing.get_origin(kind) is Literal for text in typing.get_args(kind)
    )


def item_kind(annotation: Any) -> Any:
    """The type of an item if the annotation allows a tuple, else None."""
    return next((typing.get_args(kind)[0] for kind in kinds_of(annotation) if typing.get_origin(kind) is tuple), None)


def is_mapping(annotation: Any) -> bool:
    """Whether the annotation allows a mapping from names to values."""
    return any(typing.get_origin(kind) is Mapping for kind in kinds_of(annotation))


def readable(annotation: Any) -> str:
    """A type in words, for messages."""
    words = {int: "a whole number", float: "a number such as 0.1 or 1e-4", str: "text", bool: "true or false"}
    lists = {int: "whole numbers such as 4,8,16", float: "numbers such as 1e-4,1e-3", str: "names such as a,b"}
    item = item_kind(annotation)
    found = ["names with values such as {instruction: question}"] if is_mapping(annotation) else []
    found += [] if item is None else [lists[item]]
    found += [words[kind] for kind in kinds_of(annotation) if kind in words]
    found += choices_of(annotation)
    found += ["none"] if type(None) in kinds_of(annotation) else []
    return " or ".join(found)


def convert(name: str, value: Any, annotation: Any, *, exact: bool = False) -> Any:
    """Convert a plain value or its text to the annotated type.

    Args:
      name: name of the option, for error messages.
      exact: text is taken literally, as in the files of a run; otherwise it is parsed as users write it.
      value: the value as it was written.
      annotation: the type to convert to.

    Raises:
      InputError: the value does not have this type.
    """
    if isinstance(value, str):
        if exact and str in kinds_of(annotation):
            return value
        return _from_text(name, value, annotation)
    item = item_kind(annotation)
    if isinstance(value, list | tuple):
        if item is None:
            raise _wrong(name, value, annotation)
        _check_count(name, value)
        return tuple(convert(name, each, item, exact=exact or isinstance(each, str)) for each in value)
    if isinstance(value, Mapping):
        if not is_mapping(annotation):
            raise _wrong(name, value, annotation)
        return {_plain_text(key): _plain_text(text) for key, text in value.items()}
    return _from_scalar(name, value, annotation, exact)


def _from_scalar(name: str, value: Any, annotation: Any, exact: bool = False) -> Any:
    """Convert null, a boolean or a number."""
    kinds, item = kinds_of(annotation), item_kind(annotation)
    if value is None and type(None) in kinds:
        return None
    if isinstance(value, bool):
        if bool in kinds:
            return value
        raise _wrong(name, value, annotation)
    if isinstance(value, int | float):
        whole = isinstance(value, int) or value.is_integer()
        if int in kinds and whole:
            return int(value)
        if float in kinds:
            with suppress(OverflowError):
                return float(value)
        if item in (int, float):
            return (_from_scalar(name, value, item),)
        if str in kinds and not exact:
            return str(value)
    raise _wrong(name, value, annotation)


def _from_text(name: str, text: str, annotation: Any) -> Any:
    kinds, item = kinds_of(annotation), item_kind(annotation)
    plain = text.strip().lower()
    for choice in choices_of(annotation):
        if plain == choice.lower():
            return choice
    if type(None) in kinds and plain in NOTHING:
        return None
    if item is not None:
        return _list_from_text(name, text, annotation)
    if bool in kinds and plain in TRUE + FALSE:
        return plain in TRUE
    if int in kinds and len(plain) <= MOST_DIGITS:
        with suppress(ValueError):
            return int(plain)
        with suppress(ValueError, OverflowError):
            if float(plain).is_integer():
                return int(float(plain))
    if float in kinds:
        number = None
        with suppress(ValueError):
            number = float(plain.lstrip(".") if plain.lstrip("+-") in (".inf", ".nan") else plain)
        if number == 0 and any(digit in "123456789" for digit in plain.partition("e")[0]):
            raise InputError(f"{name} {printable(text)} is so small that it would be read as 0; write 0, or 1e-300 or more.")
        if number is not None:
            return number
    if str in kinds:
        return text
    if is_mapping(annotation) and plain.startswith("{"):
        return convert(name, parse_json(text, name, None), annotation, exact=True)
    raise _wrong(name, text, annotation)


def _list_from_text(name: str, text: str, annotation: Any) -> Any:
    """Several values from one text; a text without separators stays one value if the option allows that."""
    kinds, item = kinds_of(annotation), item_kind(annotation)
    stripped = text.strip()
    if stripped.startswith("[") and stripped.endswith("]"):
        with suppress(InputError):
            return convert(name, parse_json(stripped, name, None), annotation)
        stripped = stripped[1:-1]
        parts = [part.strip().strip("'\"") for part in stripped.split(",")]
    elif item is str:
        parts = [part.strip() for part in stripped.split(",")] if "," in text and not _is_file(text) else [text]
    else:
        parts = stripped.split(",") if "," in stripped else stripped.split()
    _check_count(name, parts)
    # A comma after the last value is ignored.
    parts = parts[:-1] if len(parts) > 1 and not parts[-1].strip() else parts
    if not all(part.strip() for part in parts) or not parts:
        raise InputError(f"{name} {printable(text)!r} has an empty item; write {readable(annotation)}.")
    if str in kinds and len(parts) == 1:
        return parts[0]
    try:
        return tuple(convert(name, part, item, exact=item is str) for part in parts)
    except InputError as error:
        raise _wrong(name, text, annotation) from error


def _check_count(name: str, values: Sequence[Any]) -> None:
    if len(values) > MOST_ITEMS:
        raise InputError(f"{name} has {len(values):,} values; give {MOST_ITEMS:,} or fewer.")


def _is_file(text: str) -> bool:
    """Whether a text with commas is the name of a file, or a glob pattern that matches files."""
    with suppress(OSError, ValueError):
        path = os.path.expanduser(text)
        return os.path.exists(path) or (glob.has_magic(path) and bool(glob.glob(path)))
    return False


def _plain_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _wrong(name: str, value: Any, annotation: Any) -> InputError:
    shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:60]}..."
    return InputError(f"{name} {printable(shown)} is not {readable(annotation)}; correct it.")


def from_words(name: str, words: Sequence[str], annotation: Any) -> Any:
    """The value that the words after a flag stand for, in any of the module's forms.

    Raises:
      InputError: the words do not have this type, or give more than one value.
    """
    item = item_kind(annotation)
    if is_mapping(annotation) and len(words) > 1:
        if len(words) % 2:
            raise InputError(f"{name} has {len(words)} words; write names and values in pairs.")
        return _pairs(name, list(zip(words[::2], words[1::2], strict=True)))
    if len(words) == 1:
        return _from_word(name, words[0], annotation)
    if item is None:
        raise InputError(f"{name} takes one value but got {len(words)}: {printable(' '.join(words))}; give one.")
    found: list[Any] = []
    for word in words:
        value = _from_word(name, word, annotation)
        found += value if isinstance(value, tuple) else [value]
    if None in found:
        raise InputError(f"{name} has none beside other values; give one or the other.")
    return tuple(found)


def _pairs(name: str, pairs: list[tuple[str, str]]) -> dict[str, str]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InputError(f"{name} names the same thing twice; name each once.")
    return found


def _from_word(name: str, word: str, annotation: Any) -> Any:
    """One word; JSON of a matching type is taken literally."""
    reads: list[tuple[str, type, bool]] = [
        ('"', str, str in kinds_of(annotation)),
        ("[", list, item_kind(annotation) is not None),
    ]
    for mark, shape, fits in reads:
        if fits and word.startswith(mark):
            with suppress(InputError):
                value = parse_json(word, name, None)
                if isinstance(value, shape):
                    return convert(name, value, annotation, exact=True)
    return convert(name, word, annotation)


def as_words(value: Any, annotation: Any) -> list[str]:
    """A value as words after a flag: the inverse of `from_words`."""
    if isinstance(value, Mapping):
        parts = [text for pair in value.items() for text in pair]
        return [json.dumps(value)] if len(parts) < 2 or any(map(_needs_quotes, parts)) else parts
    if isinstance(value, tuple):
        parts = [_plain_text(item) for item in value]
        enough = 2 if str in kinds_of(annotation) else 1
        quoted = len(parts) < enough or any("," in part or _needs_quotes(part) for part in parts)
        return [json.dumps(list(value)) if quoted else ",".join(parts)]
    if isinstance(value, str) and value not in choices_of(annotation):
        several = item_kind(annotation) is not None and "," in value
        return [json.dumps(value) if several or _needs_quotes(value) else value]
    return [str(value).lower() if value is None or isinstance(value, bool) else str(value)]


def _needs_quotes(text: str) -> bool:
    """Whether a text could be parsed as another value, or has characters that are not visible."""
    marked = text.startswith(("-", '"', "[", "{")) or text != text.strip() or not text
    return marked or not text.isprintable() or text.lower() in NOTHING
