"""Reads rows of a data file as a stream: JSON, JSONL, CSV, TSV and Parquet, the text formats also gzipped.

A row is a number, counted from 1, and an object of named values. The number is the one that an editor shows: JSONL gives the
line, CSV and TSV (RFC 4180 quotes, so that a value may contain line breaks) the line on which the row starts; a JSON array
and Parquet give the record. Text is UTF-8 with or without a byte order mark, and JSON is parsed by the rules of
`devft_jax.files`. Gzip, Parquet, JSON arrays and JSONL are recognised by content, CSV and TSV by the suffix, in upper or
lower case. All except a JSON array, which is parsed as a whole, are read in pieces; Parquet by parts of row groups.
"""

import csv
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from devft_jax.errors import InputError
from devft_jax.files import parse_json, printable

_TABLES = (".csv", ".tsv")
_PLAIN = (".json", ".jsonl", *_TABLES)
SUFFIXES = (*_PLAIN, *(f"{suffix}.gz" for suffix in _PLAIN), ".parquet")

# A carriage return alone, an old line end.
_OLD_LINE_END = re.compile(r"(?<=\r)(?!\n)")

Row = tuple[int, Mapping[str, Any]]

# Number of Parquet rows converted to Python objects at once.
_PARQUET_ROWS = 1024

# The csv module's default limit (131,072 characters) is too small for long answers.
_LONGEST_VALUE = 2**31 - 1


@dataclass(frozen=True)
class Scan:
    """The result of a pass over all rows.

    Attributes:
      count: number of rows.
      fields: names that occur in any row.
    """

    count: int
    fields: tuple[str, ...]


def stem(name: str) -> str:
    """A file name or path without the suffix of its format.

    Args:
      name: name or path of a file.
    """
    suffix = max((suffix for suffix in (*SUFFIXES, ".gz") if name.lower().endswith(suffix)), key=len, default="")
    return name[: len(name) - len(suffix)]


def shown(path: Path) -> str:
    """The name of a file in messages.

    Args:
      path: path of the file.
    """
    return printable(str(path))


def scan_rows(path: Path) -> Scan:
    """Count the rows of a file and collect their fields; of Parquet only the footer is read.

    Args:
      path: path of the file.

    Raises:
      InputError: the file is unreadable, damaged, empty or holds something other than objects.
    """
    if _begins_with(path, b"PAR1"):
        file = _parquet(path)
        names = file.schema_arrow.names
        _check_distinct(names, shown(path), "the file")
        scan = Scan(file.metadata.num_rows, tuple(names))
    else:
        scan = to_scan(shown(path), _text_rows(path))
    if not scan.count:
        raise InputError(f"{shown(path)} holds no record; fill it or leave it out.")
    return scan


def to_scan(place: str, rows: Iterable[tuple[int, Any]]) -> Scan:
    """Count rows and collect their fields.

    Args:
      place: where the rows are, for messages.
      rows: numbered rows.
    """
    count, present = 0, dict[str, None]()
    for number, row in rows:
        if not isinstance(row, Mapping):
            raise InputError(
                f"{place}:{number} is a {type(row).__name__}, not an object; every record must be an "
                "object with an instruction and an output, or with the turns of a conversation."
            )
        count += 1
        present.update(dict.fromkeys(row))
    return Scan(count, tuple(present))


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file that `scan_rows` has accepted.

    Args:
      path: path of the file.
    """
    return _parquet_rows(path) if _begins_with(path, b"PAR1") else _text_rows(path)


def _begins_with(path: Path, mark: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(mark)) == mark
    except OSError as error:
        raise InputError(f"{shown(path)} cannot be read ({error.strerror or error}); check its permissions.") from error


def _parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, "Parquet", error) from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow

    number = 0
    try:
        for batch in _parquet(path).iter_batches(batch_size=_PARQUET_ROWS):
            for row in _parquet_objects(batch, path, number):
                number += 1
                yield number, row
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, f"Parquet after record {number}", error) from error


def _parquet_objects(batch: Any, path: Path, before: int) -> list[dict[str, Any]]:
    """The rows of a batch, `before` being the number of earlier rows; text that is not UTF-8 is found row by row."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        rows = (batch.slice(index, 1) for index in range(len(batch)))
    except ValueError as error:
        # Values without a Python object, such as the second of two values with the same name in a structure.
        raise _unreadable(path, f"Parquet after record {before}", error) from error
    found = []
    for number, row in enumerate(rows, before + 1):
        try:
            found += row.to_pylist()
        except UnicodeDecodeError as error:
            raise InputError(f"{shown(path)}:{number} is not UTF-8 text ({_bad_byte(error)}); save it as UTF-8.") from error
    return found


def _bad_byte(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x}, {error.reason}"


def _unreadable(path: Path, kind: str, error: Exception) -> InputError:
    reason = str(error).strip().split("\n")[0].rstrip(".")
    return InputError(f"{shown(path)} cannot be read as {kind} ({reason}); replace it by a whole file.")


def _text_rows(path: Path) -> Iterator[Row]:
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    try:
        if kind in _TABLES:
            yield from _csv_rows(path, "," if kind == ".csv" else "\t")
        else:
            yield from _json_rows(path)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, "text, plain or gzipped", error) from error


def _open(path: Path) -> BinaryIO:
    return gzip.open(path) if _begins_with(path, b"\x1f\x8b") else path.open("rb")  # type: ignore[return-value]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers, including line ends; only "\\n" ends a line, others may be inside strings."""
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            try:
                # The byte order mark is not part of the first line.
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number, _bad_byte(error)) from error


def _not_utf8(path: Path, line: int, reason: str) -> InputError:
    return InputError(
        f"{shown(path)}:{line} is not UTF-8 text, plain or gzipped ({reason}); save it as UTF-8, "
        f"or give a file that ends in {', '.join(SUFFIXES)}."
    )


def _json_rows(path: Path) -> Iterator[Row]:
    is_first = True
    lines = _lines(path)
    for number, line in lines:
        if not line.strip():
            continue
        if is_first and line.lstrip().startswith("["):
            whole = "".join(chain([line], (text for _, text in lines)))
            yield from enumerate(parse_json(whole, shown(path), number), 1)
            return
        if is_first and not line.lstrip().startswith("{"):
            raise InputError(
                f"{shown(path)}:{number} is not valid JSON (it begins with {printable(repr(line.strip()[:1]))}); a JSON "
                "file is one array of objects or one object on every line, and the names of others must end in "
                f"{', '.join(_TABLES)}."
            )
        is_first = False
        yield number, parse_json(line, shown(path), number)


def _csv_rows(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_VALUE)
    lines = (line for _, text in _lines(path) for line in _OLD_LINE_END.split(text) if line)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for values in reader:
            start, line = line, reader.line_num + 1
            if not values:
                continue
            if header is None:
                header = _header(values, path, start)
            elif len(values) != len(header):
                raise InputError(
                    f"{shown(path)}:{start} has {len(values)} values and the header names {len(header)} columns; "
                    "correct the row, with quotes around values that hold a separator or a line break."
                )
            else:
                # A column without a name is the row number that pandas writes.
                yield start, {name: value for name, value in zip(header, values, strict=True) if name}
    except csv.Error as error:
        raise InputError(f"{shown(path)}:{line} is not valid CSV ({error}); correct the quotes of the row there.") from error


def _header(names: list[str], path: Path, line: int) -> list[str]:
    names = [name.strip() for name in names]
    if any("\0" in name for name in names):
        raise _not_utf8(path, line, "NUL characters in the names of the columns, as in UTF-16")
    _check_distinct([name for name in names if name], f"{shown(path)}:{line}", "the first row")
    return names


def _check_distinct(names: Sequence[str], place: str, where: str) -> None:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise InputError(f"{place} names the column {printable(repr(twice))} twice; {where} must name every column once.")
