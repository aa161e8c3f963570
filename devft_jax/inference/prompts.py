"""Input of prompts: one that is typed, those of a file, those of standard input."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from devft_jax.data import Record
from devft_jax.data.layouts import LAYOUTS
from devft_jax.errors import InputError
from devft_jax.files import MOST_BYTES, checked_path, decoded, parse_json, printable, read_text


def to_record(text: str, origin: str, input: str = "") -> Record:
    """A prompt as typed.

    Args:
      text: the prompt.
      origin: where it comes from, for messages.
      input: the text that it refers to.

    Raises:
      InputError: it has bytes that are not valid text.
    """
    try:
        (text + input).encode()
    except UnicodeEncodeError as error:
        # Python represents a byte that is not valid UTF-8 as half of a surrogate pair.
        wrong = printable(error.object[error.start])
        raise InputError(f"{origin} is not UTF-8 text ({wrong}); write it in UTF-8.") from error
    return Record(instruction=text, input=input, output="", category=None, origin=origin)


def read_prompts(path: str | Path, fields: Mapping[str, str]) -> list[Record]:
    """The prompts of a file.

    Args:
      path: `.jsonl` (one object per line) or `.json` (an array) of records, which need no output; any other file is text,
        one prompt per line. Empty lines are skipped.
      fields: names of a record's fields by role, for records with other names than training data usually has.

    Returns:
      One record per prompt.

    Raises:
      InputError: the file cannot be read or holds no prompt, or a record has no instruction; the message names the line.
    """
    path = checked_path(path, "file")
    text = read_text(path, "the prompts")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if path.suffix == ".json":
        rows = parse_json(text, str(path))
        if not isinstance(rows, list):
            raise InputError(f"{path} does not hold an array of records; write them in brackets, or one per line in .jsonl.")
        records = [_record_of(row, f"{path}:{number}", fields) for number, row in enumerate(rows, 1)]
    elif path.suffix == ".jsonl":
        records = [_record_of(parse_json(line, str(path), number), f"{path}:{number}", fields) for number, line in lines]
    else:
        records = [to_record(line.rstrip("\r"), f"{path}:{number}") for number, line in lines]
    if not records:
        raise InputError(f"{path} holds no prompt; write one per line.")
    return records


def _record_of(row: Any, origin: str, fields: Mapping[str, str]) -> Record:
    if not isinstance(row, Mapping):
        raise InputError(f"{origin} is a {type(row).__name__}, not an object with an instruction; correct it.")

    def text(role: str) -> str | None:
        names = [fields[role]] if role in fields else [layout[role] for layout in LAYOUTS if role in layout]
        return next((str(row[name]) for name in names if row.get(name) is not None), None)

    instruction = text("instruction")
    if instruction is None:
        named = fields.get("instruction", "instruction, prompt or question")
        raise InputError(f"{origin} has no field {named} (it has {', '.join(map(str, row)) or 'none'}); add it.")
    return to_record(instruction, origin, text("input") or "")


def read_standard_input(stream: TextIO) -> list[Record]:
    """The prompts of a stream, one per line; empty lines are skipped.

    Args:
      stream: standard input; its bytes are read as UTF-8, whatever encoding it has.

    Returns:
      One record per prompt.

    Raises:
      InputError: it is not UTF-8 text, is too long, or holds no prompt.
    """
    # As bytes, so that invalid text is reported with its line, whatever encoding the terminal has.
    raw = getattr(stream, "buffer", None)
    content = stream.read().encode("utf-8", "surrogateescape") if raw is None else raw.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise InputError(f"standard input holds more than {MOST_BYTES:,} bytes of prompts; give them in parts.")
    lines = enumerate(decoded(content, "standard input").split("\n"), 1)
    records = [to_record(line.rstrip("\r"), f"standard input:{number}") for number, line in lines if line.strip()]
    if not records:
        raise InputError("standard input holds no prompt; write one per line, or give --prompt or --file.")
    return records
