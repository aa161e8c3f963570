"""The folder of a run: `config.json`, the split over clients as `split.json` and `split.svg`, `metrics.jsonl`,
`checkpoints/`, `bank/` (what clients keep between rounds, one file per checkpoint, if they keep anything), `adapter/`,
`summary.json` (`record.json` until the run is finished) and `report.html`.

Every file is either appended to (metrics, one line per round) or replaced atomically, so a process that is killed at any
moment leaves a folder from which the run can be resumed. The checkpoint decides: metrics of later rounds are cut off then.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from devft_jax.errors import InputError
from devft_jax.files import checked_path, read_text, write_atomically
from devft_jax.files.writing import temporary_name
from devft_jax.storage.checkpoints import Checkpoints
from devft_jax.storage.metrics import Metrics
from devft_jax.storage.ownership import LOCK_FILE, Kind, claim, remove_left_over
from devft_jax.storage.records import RunRecord
from devft_jax.storage.saving import saving
from devft_jax.storage.split_record import SplitRecord


class RunFolder:
    """Reads and writes one run's folder.

    Inside a `with` block the folder exists, and no other process may write to it.

    Args:
      path: the folder.
      kind: what will be written there; the folder must be empty or already hold this kind. None for any kind.

    Attributes:
      metrics: the run's metrics.
      checkpoints: the run's checkpoints.

    Raises:
      InputError: the folder cannot be written, holds something else, or another process is using it.
    """

    def __init__(self, path: str | Path, kind: Kind | None = None):
        self.path = checked_path(path, "out").absolute()
        self._kind = kind
        self._made = False
        self._lock: Any = None
        self.metrics = Metrics(self.path)
        self.checkpoints = Checkpoints(self.path, self.metrics)

    def __enter__(self) -> "RunFolder":
        """Create the folder and lock it."""
        if self._kind is not None:
            claim(self.path, self._kind)
        try:
            self._made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            # A link of this name is not followed, and the file is not emptied.
            self._lock = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise InputError(f"out {self.path} cannot be written ({error.strerror}); name a writable folder.") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise InputError(f"out {self.path} is in use by another run; wait for it or name another folder.") from error
        if self._kind is not None:
            try:
                # Another process may have finished its work here in the meantime.
                claim(self.path, self._kind)
            except InputError:
                os.close(self._lock)
                raise
            remove_left_over(self.path, self._kind)
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        """Unlock the folder; remove it if the block failed before anything was written."""
        if kind is not None and self._made and self.path.is_dir() and os.listdir(self.path) == [LOCK_FILE]:
            (self.path / LOCK_FILE).unlink()
            self.path.rmdir()
        os.close(self._lock)

    @contextlib.contextmanager
    def reading(self) -> Iterator["RunFolder"]:
        """Keep other processes from writing inside the block; nothing is created, so the folder may be read-only."""
        try:
            held = os.open(self.path / LOCK_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            # No lock file: nothing was written there since it was copied, or writing is not permitted.
            yield self
            return
        try:
            try:
                fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"{self.path} is in use by a run; wait for it.") from error
            except OSError:
                # Some file systems have no locks for readers.
                pass
            yield self
        finally:
            os.close(held)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON object of the folder; None if there is no such file; raises InputError if it cannot be read."""
        if not (self.path / name).exists():
            return None
        try:
            # Names of clients may contain characters that `read_json` refuses.
            value = json.loads(read_text(self.path / name))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.path / name} cannot be read ({error}); restore it or name another folder.") from error
        if not isinstance(value, dict):
            raise InputError(f"{self.path / name} does not hold options by name; restore it or name another folder.")
        return value

    def write_json(self, name: str, value: Any, *, indented: bool = True) -> None:
        """Replace a JSON file of the folder atomically.

        Args:
          name: name of the file.
          value: JSON-ready.
          indented: whether to indent for readers; without it large values are written ten times as fast.
        """
        self.write_text(name, json.dumps(value, indent=1 if indented else None) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Replace a text file of the folder atomically."""
        with saving(self.path, name):
            write_atomically(self.path / name, text)

    def read_summary(self) -> RunRecord | None:
        """The record of a finished run, summary.json; None if there is none."""
        return self._read_run("summary.json")

    def read_unfinished(self) -> RunRecord | None:
        """The record of an unfinished or lengthened run, record.json; None if there is none."""
        return self._read_run("record.json")

    def _read_run(self, name: str) -> RunRecord | None:
        plain = self.read_json(name)
        return None if plain is None else RunRecord.from_plain(plain, self.path)

    def write_unfinished(self, record: RunRecord) -> None:
        """Replace record.json."""
        self.write_json("record.json", record.to_plain())

    def write_summary(self, record: RunRecord) -> None:
        """Write summary.json, which replaces record.json."""
        self.write_json("summary.json", record.to_plain())
        (self.path / "record.json").unlink(missing_ok=True)

    def read_split(self) -> SplitRecord | None:
        """The split over clients, split.json; None if there is none."""
        plain = self.read_json("split.json")
        return None if plain is None else SplitRecord.from_plain(plain, self.path)

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """An empty subfolder to write into, which replaces the one called `name` if the block succeeds."""
        final = self.path / name
        temporary, old = temporary_name(final), temporary_name(final)
        try:
            with saving(self.path, name):
                temporary.mkdir()
                yield temporary
                if final.exists():
                    os.replace(final, old)
                os.replace(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
