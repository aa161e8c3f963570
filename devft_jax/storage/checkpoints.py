"""The checkpoints of a run, `checkpoints/<round>/`, and what clients keep, `bank/round_<round>.safetensors`.

A checkpoint is written atomically, and every byte is verified before it is read (`devft_jax.storage.digests`). Kept are the
two newest, the last one of every stage, from which the stage can be exported, that of the best round, if the run looks for
it, and the one after which the run was lengthened, because later rounds are replayed from it.

Of several processes, all write the arrays, through orbax, and each the rows that it keeps, to `rows/<process>.safetensors`
in the checkpoint's folder; process 0 does the rest. A checkpoint is read by any number of processes.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from devft_jax.errors import InputError
from devft_jax.files import read_json, write_atomically
from devft_jax.files.writing import temporary_name
from devft_jax.runtime.processes import ALONE, Processes
from devft_jax.storage.digests import fault_of, read_list, same_start, write_list
from devft_jax.storage.metrics import Metrics
from devft_jax.storage.records import CheckpointRecord
from devft_jax.storage.saving import quiet_libraries, saving
from devft_jax.typing import PyTree

CHECKPOINTS_KEPT = 2
ROWS = "rows"
"""Subfolder of a checkpoint of several processes with what clients keep."""


class Checkpoints:
    """Reads and writes the checkpoints of a run.

    Args:
      folder: the run's folder.
      metrics: the run's metrics; a checkpoint stores the digest of the lines so far.
      processes: those that read and write checkpoints together: every method that reads or writes arrays is called by all.
    """

    def __init__(self, folder: Path, metrics: Metrics, processes: Processes = ALONE):
        self.path = folder
        self._metrics, self._processes = metrics, processes
        self._intact: set[int] = set()
        self._stages: dict[int, int | None] = {}

    def latest_round(self) -> int | None:
        """The round of the newest complete checkpoint, or None."""
        return max(self.saved_rounds(), default=None)

    def before(self, round_index: int) -> int | None:
        """The newest checkpoint of a round before this one, or None."""
        return max((saved for saved in self.saved_rounds() if saved < round_index), default=None)

    def after(self, round_index: int) -> int | None:
        """The oldest checkpoint of a round after this one, or None."""
        return min((saved for saved in self.saved_rounds() if saved > round_index), default=None)

    def saved_rounds(self) -> list[int]:
        """Rounds of all checkpoints that are not empty, ascending."""
        return [saved for saved, filled in self._found_rounds().items() if filled]

    def empty_rounds(self) -> list[int]:
        """Rounds of checkpoints whose files are all empty, which are ignored."""
        return [saved for saved, filled in self._found_rounds().items() if not filled]

    def _found_rounds(self) -> dict[int, bool]:
        """The rounds after which folders are named, ascending, and whether each folder holds anything."""
        folders = (path for path in self._folder.glob("*") if path.name.isdecimal() and path.is_dir())
        return {int(path.name): _holds_bytes(path) for path in sorted(folders, key=lambda path: int(path.name))}

    @property
    def _folder(self) -> Path:
        return self.path / "checkpoints"

    def bank_path(self, round_index: int) -> Path:
        """The file of what clients keep at a checkpoint of one process."""
        return self.path / "bank" / f"round_{round_index}.safetensors"

    def bank_paths(self, round_index: int) -> list[Path]:
        """The files of what clients keep at a checkpoint: one for every process that has saved it."""
        of_processes = sorted((self._folder / str(round_index) / ROWS).glob("*.safetensors"))
        return of_processes or [self.bank_path(round_index)]

    def save(
        self,
        round_index: int,
        arrays: PyTree,
        record: CheckpointRecord,
        bank: Callable[[Path], None] | None = None,
    ) -> None:
        """Write the checkpoint of a round, then remove older ones that are no longer needed.

        Args:
          round_index: the round.
          arrays: the run's state.
          record: its `stage`, `lengthened_after` and `best` determine which checkpoints are needed.
          bank: called with the path of the file to which it writes what clients keep; done before the checkpoint appears.

        Raises:
          RunError: the checkpoint could not be written.
        """
        import orbax.checkpoint as ocp

        processes, final = self._processes, self._folder / str(round_index)
        new = final.with_name(processes.from_first(temporary_name(final).name))
        try:
            with saving(self.path, f"the checkpoint of round {round_index}"):
                if processes.first:
                    (new / ROWS if processes.several and bank is not None else new).mkdir(parents=True)
                processes.meet()
                if bank is not None:
                    bank(new / ROWS / f"{processes.index}.safetensors" if processes.several else self.bank_path(round_index))
                with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
                    writer.save(new / "arrays", args=ocp.args.StandardSave(processes.everywhere(arrays)))
                processes.meet()
                if processes.first:
                    held = None if bank is None or processes.several else self.bank_path(round_index)
                    self._complete(new, final, record, held)
                processes.meet()
                self._stages[round_index] = record.stage
                self._intact.add(round_index)
        finally:
            if processes.first:
                shutil.rmtree(new, ignore_errors=True)

    def _complete(self, new: Path, final: Path, record: CheckpointRecord, bank: Path | None) -> None:
        """Add a checkpoint's record and list, give it its name, and remove older ones that are no longer needed.

        Args:
          new: its folder so far.
          final: its folder.
          record: its record.
          bank: the file of what clients keep outside of the folder; None for none.
        """
        write_atomically(new / "record.json", json.dumps(record.to_plain()) + "\n")
        write_list(new, bank=bank, metrics=self._metrics.mark)
        _remove(final)
        os.replace(new, final)
        self._stages[record.round] = record.stage
        best = record.totals.best
        self._remove_older({record.totals.lengthened_after, *([] if best is None else [best.round])})

    def _remove_older(self, needed: set[int]) -> None:
        """Remove the checkpoints that are not needed, and the banks of rounds without a checkpoint."""
        saved = self.saved_rounds()
        kept = {*self.last_rounds().values(), *needed, *saved[-CHECKPOINTS_KEPT:]}
        for old in set(saved) - kept:
            _remove(self._folder / str(old))
        kept_banks = {self.bank_path(round_index) for round_index in kept}
        for path in (self.path / "bank").glob("round_*.safetensors"):
            if path not in kept_banks:
                path.unlink()

    def last_rounds(self) -> dict[int, int]:
        """For every stage with a complete checkpoint, from 0, the round of its newest."""
        stages = {saved: self._stage_of(saved) for saved in sorted(self.saved_rounds())}
        return {stage: saved for saved, stage in stages.items() if stage is not None}

    def _stage_of(self, round_index: int) -> int | None:
        """The stage of a checkpoint; None if it cannot be read, for example because its removal was interrupted."""
        if round_index not in self._stages:
            try:
                self._stages[round_index] = self.read_record(round_index).stage
            except InputError:
                self._stages[round_index] = None
        return self._stages[round_index]

    def check(self, round_index: int) -> None:
        """Raise `InputError` unless checkpoint, bank and metrics of a round are unchanged."""
        self._refuse_damaged(round_index)
        if not self._metrics_as_of(round_index):
            before = self._intact_before(round_index, metrics=True)
            raise InputError(
                f"{self.path / 'metrics.jsonl'} has changed since round {round_index} was saved; restore it, or "
                f"{self._how_to_continue(before)}."
            )

    def _fault(self, round_index: int) -> str | None:
        """What is wrong with a checkpoint, in words; None if it is intact."""
        if round_index in self._intact:
            return None
        found = fault_of(self._folder / str(round_index), self.bank_path(round_index))
        if found is None:
            self._intact.add(round_index)
        return found

    def _refuse_damaged(self, round_index: int) -> None:
        if found := self._fault(round_index):
            raise self._cannot_be_read(round_index, found)

    def _metrics_as_of(self, round_index: int) -> bool:
        return same_start(self._metrics.path, read_list(self._folder / str(round_index))["metrics"])

    def _cannot_be_read(self, round_index: int, reason: str) -> InputError:
        path = self._folder / str(round_index)
        remedy = self._how_to_continue(self._intact_before(round_index), named=path)
        return InputError(f"the checkpoint {path} cannot be read ({reason}); {remedy}.")

    def _intact_before(self, round_index: int, *, metrics: bool = False) -> int | None:
        """The newest intact checkpoint before this one."""
        earlier = [saved for saved in reversed(self.saved_rounds()) if saved < round_index]
        sound = (saved for saved in earlier if not self._fault(saved) and (not metrics or self._metrics_as_of(saved)))
        return next(sound, None)

    def _how_to_continue(self, before: int | None, named: Path | None = None) -> str:
        """How the user can continue, in words; `named` is a checkpoint that the sentence has already named, if any."""
        if before is None:
            return "start again in another folder"
        later = [self._folder / str(saved) for saved in self.saved_rounds() if saved > before]
        what = "it" if later == [named] else " and ".join(map(str, later))
        return f"delete {what} to resume from round {before}"

    def read_record(self, round_index: int) -> CheckpointRecord:
        """The record of a checkpoint; raises InputError if it cannot be read."""
        self._refuse_damaged(round_index)
        with self.restoring(round_index):
            plain = read_json(self._folder / str(round_index) / "record.json")
        return CheckpointRecord.from_plain(plain, self.path)

    def read_arrays(self, round_index: int, like: PyTree) -> PyTree:
        """The arrays of a checkpoint, in the structure, shapes and dtypes of `like`; raises InputError if they cannot be
        read."""
        import orbax.checkpoint as ocp

        self._refuse_damaged(round_index)
        with self.restoring(round_index), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            path = self._folder / str(round_index) / "arrays"
            return _first_parts(reader.restore(path, args=ocp.args.StandardRestore(self._target(like))))

    def read_some_arrays(self, round_index: int, like: PyTree) -> PyTree:
        """As `read_arrays`, but reads only the leaves that `like` has: an export, for example, needs no bank.

        Args:
          round_index: the round.
          like: shapes and dtypes of the leaves to read.

        Raises:
          InputError: the checkpoint cannot be read, or belongs to another model.
        """
        import orbax.checkpoint as ocp

        self._refuse_damaged(round_index)
        path = self._folder / str(round_index) / "arrays"
        target = self._target(like)
        wanted = ocp.checkpoint_utils.construct_restore_args(target)
        arguments = ocp.args.PyTreeRestore(target, restore_args=wanted, partial_restore=True)
        # The handler of whole items cannot read a part of them.
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
                return _first_parts(reader.restore(path, args=arguments))

    def _target(self, like: PyTree) -> PyTree:
        """Shapes and dtypes of `like`, whole on one device of every process, as the target of orbax."""
        home = self._processes.whole
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=home), like)

    @contextlib.contextmanager
    def restoring(self, round_index: int) -> Iterator[None]:
        """Turn any error while reading a checkpoint inside the block into one sentence that says how to continue."""
        try:
            with quiet_libraries():
                yield
        except InputError:
            raise
        except Exception as error:
            raise self._cannot_be_read(round_index, type(error).__name__) from error


def _holds_bytes(folder: Path) -> bool:
    return any(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _remove(folder: Path) -> None:
    """Remove a checkpoint, if there is one: it is renamed first, so that what is left of it is never read as a
    checkpoint."""
    if folder.exists():
        old = temporary_name(folder)
        os.replace(folder, old)
        shutil.rmtree(old)


def _first_parts(tree: PyTree) -> PyTree:
    """Arrays that every process holds whole, as arrays of this process."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf, tree)
