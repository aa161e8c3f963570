"""A run is a folder: `config.json`, the split over clients as `split.json` and `split.svg`, `metrics.jsonl`,
`checkpoints/`, `bank/` (what clients keep between rounds, a file for each checkpoint, where they keep anything), `adapter/`,
`summary.json` (`record.json` until the run is finished) and `report.html`.

Everything in it is either appended to (metrics, a line a round) or replaced as a whole, so that a process killed at any
moment leaves a folder from which the run goes on. The checkpoint is the truth: metrics that ran ahead of it are cut back.

Of the checkpoints the newest two are kept, the last one of every stage, from which the stage can be exported, and the one
after which the run was lengthened, because rounds from there on are replayed from it.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from devft_jax.errors import InputError, RunError
from devft_jax.files import checked_path, parse_json, read_json, read_text, write_atomically
from devft_jax.files.writing import temporary_name
from devft_jax.storage.digests import fault_of, new_digest, read_list, same_start, write_list
from devft_jax.storage.ownership import LOCK_FILE, Kind, claim, remove_left_over
from devft_jax.storage.records import CheckpointRecord, RoundRecord, RunRecord, SplitRecord
from devft_jax.typing import PyTree

CHECKPOINTS_KEPT = 2


class RunFolder:
    """Reads and writes one run's folder.

    Args:
      path: the folder; created, and held alone, inside a `with` block.
      kind: what is going to be written there, which must be its own or the first; None to go by what is there.

    Raises:
      InputError: the folder cannot be written, is somebody else's, or another process is using it.
    """

    def __init__(self, path: str | Path, kind: Kind | None = None):
        self.path = checked_path(path, "out").absolute()
        self._kind = kind
        self._made = False
        self._lock: Any = None
        self._sound: set[int] = set()
        self._metrics, self._metrics_bytes = new_digest(), 0
        self._stages: dict[int, int | None] = {}

    def __enter__(self) -> "RunFolder":
        """Create the folder and hold it alone."""
        if self._kind is not None:
            claim(self.path, self._kind)
        try:
            self._made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            # Whatever is there under this name is neither followed nor emptied.
            self._lock = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise InputError(
                f"out {self.path} cannot be written ({error.strerror}); name a folder you may write."
            ) from error
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
        """Let the folder go; one in which a refused run wrote nothing is removed."""
        if kind is not None and self._made and self.path.is_dir() and os.listdir(self.path) == [LOCK_FILE]:
            (self.path / LOCK_FILE).unlink()
            self.path.rmdir()
        os.close(self._lock)

    @contextlib.contextmanager
    def reading(self) -> Iterator["RunFolder"]:
        """Keep others from writing while the folder is read, which may be one that cannot be written; nothing is made."""
        try:
            held = os.open(self.path / LOCK_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            # Nobody has written there since it was copied, or nobody may.
            yield self
            return
        try:
            try:
                fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"{self.path} is in use by a run; wait for it.") from error
            except OSError:
                # Not every file system has locks for readers.
                pass
            yield self
        finally:
            os.close(held)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder, or None where there is none."""
        if not (self.path / name).exists():
            return None
        try:
            # Names of clients may hold what `read_json` refuses of data.
            value = json.loads(read_text(self.path / name))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.path / name} cannot be read ({error}); restore it or name another folder.") from error
        if not isinstance(value, dict):
            raise InputError(f"{self.path / name} does not hold options by name; restore it or name another folder.")
        return value

    def write_json(self, name: str, value: Any, *, indented: bool = True) -> None:
        """Replace a JSON file of the folder as a whole; without indentation large values take a tenth of the time."""
        self.write_text(name, json.dumps(value, indent=1 if indented else None) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Replace a text file of the folder as a whole."""
        with self._saving(name):
            write_atomically(self.path / name, text)

    def append_metrics(self, row: RoundRecord) -> None:
        """Add a line to metrics.jsonl."""
        line = json.dumps(row.to_plain()) + "\n"
        with self._saving("metrics.jsonl"), open(self.path / "metrics.jsonl", "a", encoding="utf-8") as lines:
            lines.write(line)
        self._count_metrics(line)

    def _count_metrics(self, text: str) -> None:
        """Add to the digest of metrics.jsonl what was written to it."""
        content = text.encode()
        self._metrics.update(content)
        self._metrics_bytes += len(content)

    def read_metrics(self) -> list[RoundRecord]:
        """All lines of metrics.jsonl; a last line cut off by a kill is left out.

        Raises:
          InputError: the file or another line of it cannot be read.
        """
        return self.read_metrics_so_far()[0]

    def read_metrics_so_far(self) -> tuple[list[RoundRecord], bool]:
        """As `read_metrics`, and whether the last line was incomplete, as while it is being written or after a kill."""
        lines, cut_off = self._metrics_lines()
        return [row for _, row in lines], cut_off

    def _metrics_lines(self) -> tuple[list[tuple[str, RoundRecord]], bool]:
        """The lines of metrics.jsonl as they stand and what they hold; and whether the last one is incomplete."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return [], False
        lines = read_text(path).splitlines()
        found: list[tuple[str, RoundRecord]] = []
        for number, line in enumerate(lines, 1):
            try:
                plain = parse_json(line, str(path), number)
            except InputError:
                if number == len(lines):
                    return found, True
                raise
            found.append((line, RoundRecord.from_plain(plain, self.path, f"line {number} of metrics.jsonl")))
        return found, False

    def cut_metrics(self, rounds: int) -> list[RoundRecord]:
        """Keep the lines of the first `rounds` rounds only, as they stand, and return what they hold."""
        lines, _ = self._metrics_lines()
        kept = [(line, row) for line, row in lines if row.round <= rounds]
        text = "".join(f"{line}\n" for line, _ in kept)
        self.write_text("metrics.jsonl", text)
        self._metrics, self._metrics_bytes = new_digest(), 0
        self._count_metrics(text)
        return [row for _, row in kept]

    def read_summary(self) -> RunRecord | None:
        """What a finished run's summary.json holds; None where there is none."""
        return self._read_run("summary.json")

    def read_under_way(self) -> RunRecord | None:
        """What record.json holds of a run that has not finished, or goes on after it had; None where there is none."""
        return self._read_run("record.json")

    def _read_run(self, name: str) -> RunRecord | None:
        plain = self.read_json(name)
        return None if plain is None else RunRecord.from_plain(plain, self.path)

    def write_under_way(self, record: RunRecord) -> None:
        """Replace record.json."""
        self.write_json("record.json", record.to_plain())

    def write_summary(self, record: RunRecord) -> None:
        """Write summary.json, which takes the place of record.json."""
        self.write_json("summary.json", record.to_plain())
        (self.path / "record.json").unlink(missing_ok=True)

    def read_split(self) -> SplitRecord | None:
        """What split.json holds; None where there is none."""
        plain = self.read_json("split.json")
        return None if plain is None else SplitRecord.from_plain(plain, self.path)

    def latest_round(self) -> int | None:
        """The round of the newest whole checkpoint, or None."""
        return max(self._saved_rounds(), default=None)

    def checkpoint_before(self, round_index: int) -> int | None:
        """The newest checkpoint of a round before this one, or None."""
        return max((saved for saved in self._saved_rounds() if saved < round_index), default=None)

    def checkpoint_after(self, round_index: int) -> int | None:
        """The oldest checkpoint of a round after this one, or None."""
        return min((saved for saved in self._saved_rounds() if saved > round_index), default=None)

    def _saved_rounds(self) -> list[int]:
        """Rounds of all checkpoints that hold anything, ascending."""
        return [saved for saved, filled in self._found_rounds().items() if filled]

    def empty_rounds(self) -> list[int]:
        """Rounds of checkpoints without a byte in them, which are passed over."""
        return [saved for saved, filled in self._found_rounds().items() if not filled]

    def _found_rounds(self) -> dict[int, bool]:
        """The rounds that folders are named after, ascending, and whether these hold anything."""
        folders = (path for path in self._checkpoints.glob("*") if path.name.isdecimal() and path.is_dir())
        return {int(path.name): _holds_bytes(path) for path in sorted(folders, key=lambda path: int(path.name))}

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def bank_path(self, round_index: int) -> Path:
        """The file of what clients keep, as of a checkpoint."""
        return self.path / "bank" / f"round_{round_index}.safetensors"

    def save_checkpoint(
        self,
        round_index: int,
        arrays: PyTree,
        record: CheckpointRecord,
        bank: Callable[[Path], None] | None = None,
    ) -> None:
        """Write arrays and a record as the checkpoint of a round; it appears whole or not at all.

        `bank` writes what clients keep to the file that it is given, before there is a checkpoint that needs it. Then older
        checkpoints are removed, except those that are kept for the reasons above. The record's `stage` and
        `lengthened_after` tell which.
        """
        import orbax.checkpoint as ocp

        final = self._checkpoints / str(round_index)
        new = temporary_name(final)
        try:
            with self._saving(f"the checkpoint of round {round_index}"):
                if bank is not None:
                    bank(self.bank_path(round_index))
                new.mkdir(parents=True)
                with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
                    writer.save(new / "arrays", args=ocp.args.StandardSave(arrays))
                write_atomically(new / "record.json", json.dumps(record.to_plain()) + "\n")
                held = None if bank is None else self.bank_path(round_index)
                write_list(new, bank=held, metrics={"bytes": self._metrics_bytes, "digest": self._metrics.hexdigest()})
                _remove(final)
                os.replace(new, final)
                self._stages[round_index] = record.stage
                self._sound.add(round_index)
                self._remove_older(record.totals.lengthened_after)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _remove_older(self, lengthened_after: int) -> None:
        """Remove the checkpoints that no reason keeps, and what clients kept at rounds without one."""
        saved = self._saved_rounds()
        kept = {*self.last_rounds().values(), lengthened_after, *saved[-CHECKPOINTS_KEPT:]}
        for old in set(saved) - kept:
            _remove(self._checkpoints / str(old))
        kept_banks = {self.bank_path(round_index) for round_index in kept}
        for path in (self.path / "bank").glob("round_*.safetensors"):
            if path not in kept_banks:
                path.unlink()

    def last_rounds(self) -> dict[int, int]:
        """For every stage that has a whole checkpoint, from 0, the round of its newest."""
        stages = {saved: self._stage_of(saved) for saved in sorted(self._saved_rounds())}
        return {stage: saved for saved, stage in stages.items() if stage is not None}

    def _stage_of(self, round_index: int) -> int | None:
        """The stage of a checkpoint; None where it cannot be read, as when its removal was interrupted."""
        if round_index not in self._stages:
            try:
                self._stages[round_index] = self.read_record(round_index).stage
            except InputError:
                self._stages[round_index] = None
        return self._stages[round_index]

    def check(self, round_index: int) -> None:
        """Raise `InputError` unless all that a resume reads is as it was written: the checkpoint, the rows, the metrics."""
        self._refuse_damaged(round_index)
        if not self._metrics_as_of(round_index):
            before = self._sound_before(round_index, metrics=True)
            raise InputError(
                f"{self.path / 'metrics.jsonl'} is not what it was when round {round_index} was saved; restore it, or "
                f"{self._way_on(before)}."
            )

    def _fault(self, round_index: int) -> str | None:
        if round_index in self._sound:
            return None
        found = fault_of(self._checkpoints / str(round_index), self.bank_path(round_index))
        if found is None:
            self._sound.add(round_index)
        return found

    def _refuse_damaged(self, round_index: int) -> None:
        if found := self._fault(round_index):
            raise self._cannot_be_read(round_index, found)

    def _metrics_as_of(self, round_index: int) -> bool:
        return same_start(self.path / "metrics.jsonl", read_list(self._checkpoints / str(round_index))["metrics"])

    def _cannot_be_read(self, round_index: int, reason: str) -> InputError:
        path = self._checkpoints / str(round_index)
        way_on = self._way_on(self._sound_before(round_index), named=path)
        return InputError(f"the checkpoint {path} cannot be read ({reason}); {way_on}.")

    def _sound_before(self, round_index: int, *, metrics: bool = False) -> int | None:
        """The newest checkpoint before this one's that is as it was written."""
        earlier = [saved for saved in reversed(self._saved_rounds()) if saved < round_index]
        sound = (saved for saved in earlier if not self._fault(saved) and (not metrics or self._metrics_as_of(saved)))
        return next(sound, None)

    def _way_on(self, before: int | None, named: Path | None = None) -> str:
        """What to do, after a sentence that is about `named` where it is about a checkpoint."""
        if before is None:
            return "start again in another folder"
        later = [self._checkpoints / str(saved) for saved in self._saved_rounds() if saved > before]
        what = "it" if later == [named] else " and ".join(map(str, later))
        return f"delete {what} to go on from round {before}"

    def read_record(self, round_index: int) -> CheckpointRecord:
        """The record of a checkpoint."""
        self._refuse_damaged(round_index)
        with self.restoring(round_index):
            plain = read_json(self._checkpoints / str(round_index) / "record.json")
        return CheckpointRecord.from_plain(plain, self.path)

    def read_arrays(self, round_index: int, like: PyTree) -> PyTree:
        """The arrays of a checkpoint, in the structure, shapes and dtypes of `like`."""
        import orbax.checkpoint as ocp

        self._refuse_damaged(round_index)
        with self.restoring(round_index), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            path = self._checkpoints / str(round_index) / "arrays"
            return reader.restore(path, args=ocp.args.StandardRestore(_on_first_device(like)))

    def read_some_arrays(self, round_index: int, like: PyTree) -> PyTree:
        """As `read_arrays`, but what `like` lacks of the checkpoint is left out, as an export does without the bank.

        Raises:
          InputError: the checkpoint cannot be read, or is of another model.
        """
        import orbax.checkpoint as ocp

        self._refuse_damaged(round_index)
        path = self._checkpoints / str(round_index) / "arrays"
        target = _on_first_device(like)
        wanted = ocp.checkpoint_utils.construct_restore_args(target)
        arguments = ocp.args.PyTreeRestore(target, restore_args=wanted, partial_restore=True)
        # The manager reads whole items only.
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            with self.restoring(round_index):
                stored = ocp.tree.to_flat_dict(reader.metadata(path).item_metadata.tree)
            for name, leaf in ocp.tree.to_flat_dict(like).items():
                if name in stored and stored[name].shape != leaf.shape:
                    raise InputError(
                        f"the checkpoint {path.parent} is of a model of other shapes ({'.'.join(name)} is "
                        f"{stored[name].shape}, not {leaf.shape}); give the model that the run was started with."
                    )
            with self.restoring(round_index):
                return reader.restore(path, args=arguments)

    @contextlib.contextmanager
    def restoring(self, round_index: int) -> Iterator[None]:
        """Turn a checkpoint that cannot be read, whatever library says so, into one sentence with a way on."""
        try:
            with _quiet_libraries():
                yield
        except InputError:
            raise
        except Exception as error:
            raise self._cannot_be_read(round_index, type(error).__name__) from error

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """An empty subfolder to write an export into, which then takes the place of an older one."""
        final = self.path / name
        temporary, old = temporary_name(final), temporary_name(final)
        try:
            with self._saving(name):
                temporary.mkdir()
                yield temporary
                if final.exists():
                    os.replace(final, old)
                os.replace(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)

    @contextlib.contextmanager
    def _saving(self, what: str) -> Iterator[None]:
        """Turn a failed write, whatever library it happened in, into one sentence."""
        try:
            with _quiet_libraries():
                yield
        except Exception as error:
            reason = (str(error).splitlines() or ["no reason given"])[0]
            if self.path.is_dir():
                reason += f"; {shutil.disk_usage(self.path).free:,} bytes free"
            raise RunError(
                f"{what} could not be saved in {self.path} ({type(error).__name__}: {reason}); what "
                "was saved before is whole: make room there and run again to go on."
            ) from error


def _holds_bytes(folder: Path) -> bool:
    return any(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _remove(folder: Path) -> None:
    """Remove a checkpoint, if there is one: first its name, so that what is left of it is never taken for one."""
    if folder.exists():
        old = temporary_name(folder)
        os.replace(folder, old)
        shutil.rmtree(old)


def _on_first_device(like: PyTree) -> PyTree:
    """What orbax restores to: the shapes and dtypes of `like`, on one device."""
    home = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=home), like)


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep orbax from printing the traceback of an error that is about to be told in one sentence."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
