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
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from devft_jax.errors import InputError
from devft_jax.files import checked_path, read_text, write_atomically
from devft_jax.files.writing import temporary_name
from devft_jax.runtime.processes import ALONE, Processes
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
      processes: those that use the folder together, on storage that all of them see: process 0 writes its files, and all
        write a checkpoint's arrays.

    Attributes:
      metrics: the run's metrics.
      checkpoints: the run's checkpoints.

    Raises:
      InputError: the folder cannot be written, holds something else, or another process is using it.
    """

    def __init__(self, path: str | Path, kind: Kind | None = None, processes: Processes = ALONE):
        self.path = checked_path(path, "out").absolute()
        self._kind, self._processes = kind, processes
        self._made = False
        self._lock: Any = None
        self.metrics = Metrics(self.path)
        self.checkpoints = Checkpoints(self.path, self.metrics, processes)

    @property
    def writes(self) -> bool:
        """Whether this process writes the folder's files."""
        return self._processes.first

    def __enter__(self) -> "RunFolder":
        """Create the folder and lock it; of several processes, process 0 does, and the others check that they see it."""
        if self.writes:
            self._open()
        if self._processes.several:
            self._check_shared()
        return self

    def _check_shared(self) -> None:
        """Raise `InputError` unless this process sees the folder that process 0 has opened."""
        token = self._processes.from_first(secrets.token_hex(16) if self.writes else None)
        if self.writes:
            os.pwrite(self._lock, token.encode(), 0)
        self._processes.meet()
        # Network file systems show a new file after a while.
        for _ in range(50):
            with contextlib.suppress(OSError):
                if (self.path / LOCK_FILE).read_bytes().startswith(token.encode()):
                    return
            time.sleep(0.2)
        raise InputError(
            f"out {self.path} is another folder for {self._processes.name()} than for process 0; name one on storage that "
            "all processes share."
        )

    def _open(self) -> None:
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

    def __exit__(self, kind: type | None, *exception: object) -> None:
        """Unlock the folder; remove it if the block failed before anything was written."""
        if self._lock is None:
            return
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
        """Replace a text file of the folder atomically; of several processes, only process 0 does."""
        if not self.writes:
            return
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
        if self.writes:
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
