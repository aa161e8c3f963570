"""Files of JSON lines: those that are read as a whole, and those that only grow.

A growing file keeps every line that was finished, at whatever moment the process is killed: a line is written at once with
its end, and a line without an end is cut off before the next one is written.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devft_jax.errors import InputError, RunError
from devft_jax.files import json_objects, printable, read_text


def read_lines(path: Path, what: str) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a file, a line each, empty lines left out.

    Args:
      path: of the file.
      what: it holds, for the sentences, such as "the questions".

    Returns:
      Each object with where it stands, as `path:line`.

    Raises:
      InputError: the file cannot be read, or a line is no JSON object; names the line.
    """
    return list(json_objects(read_text(path, what), printable(str(path))))


class GrowingLines:
    """A file of JSON lines that only grows.

    Args:
      path: of the file; it and its folder may be absent.

    Attributes:
      path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[tuple[str, dict[str, Any]]]:
        """The objects of finished lines, each with where it stands; none where there is no file.

        Raises:
          InputError: the file cannot be read, or a finished line is no JSON object; names the line.
        """
        if not self.path.exists():
            return []
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise InputError(
                f"{printable(str(self.path))} cannot be read ({error.strerror}); give a folder that you may read."
            ) from error
        finished = content[: _finished(content)]
        try:
            text = finished.decode()
        except UnicodeDecodeError as error:
            number = finished[: error.start].count(b"\n") + 1
            raise InputError(f"{printable(str(self.path))}:{number} is not UTF-8 text; remove the line.") from error
        return list(json_objects(text, printable(str(self.path))))

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a line.

        Args:
          row: JSON-ready.

        Raises:
          RunError: it cannot be written.
        """
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a+b", buffering=0) as file:
                self._end_last_line(file)
                file.write(line)
        except OSError as error:
            raise RunError(
                f"{printable(str(self.path))} cannot be written ({error.strerror}); what it held before is whole: make room "
                "there and start the same command again."
            ) from error

    @staticmethod
    def _end_last_line(file: Any) -> None:
        """Cut off what a killed process had begun; a whole last line that lacks its end gets one."""
        size = file.seek(0, 2)
        if not size:
            return
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        content = file.read()
        kept = _finished(content)
        file.truncate(kept)
        if kept == len(content):
            file.write(b"\n")


def _finished(content: bytes) -> int:
    """Bytes of the finished lines: all, or all up to a last line that is not whole."""
    start = content.rfind(b"\n") + 1
    try:
        json.loads(content[start:] or b"{}")
    except ValueError:
        return start
    return len(content)
