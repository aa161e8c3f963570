"""A run is a folder: `config.json`, `metrics.jsonl`, `checkpoints/`, `adapter/` and `summary.json`.

Everything in it is either appended to (metrics, a line a round) or replaced as a whole, so that a process killed at any
moment leaves a folder from which the run goes on. The checkpoint is the truth: metrics that ran ahead of it are cut back.
"""

import contextlib
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax

from devft_jax.errors import InputError, RunError

PyTree = Any
CHECKPOINTS_KEPT = 2


class RunFolder:
    """Reads and writes one run's folder.

    Args:
      path: the folder; created with `create`.

    Raises:
      InputError: the folder cannot be written, or another process is using it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()
        self._lock: Any = None
        self._manager: Any = None

    def __enter__(self) -> "RunFolder":
        """Create the folder and hold it alone."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "w")
        except OSError as error:
            raise InputError(
                f"out {self.path} cannot be written ({error.strerror}); name a folder you may write."
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise InputError(f"out {self.path} is in use by another run; wait for it or name another folder.") from error
        return self

    def __exit__(self, *exception: object) -> None:
        """Let the folder go."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None
        self._lock.close()

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder, or None where there is none."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path / name} cannot be read ({error}); restore it or name another folder.") from error

    def write_json(self, name: str, value: Any) -> None:
        """Replace a JSON file of the folder as a whole."""
        temporary = self.path / f".{name}.partial"
        with self._saving(name):
            temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, self.path / name)

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with self._saving("metrics.jsonl"), open(self.path / "metrics.jsonl", "a") as lines:
            lines.write(json.dumps(row) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl; a line cut off by a kill is left out."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
        return rows

    def cut_metrics(self, rounds: int) -> list[dict[str, Any]]:
        """Keep the lines of the first `rounds` rounds only and return them."""
        rows = [row for row in self.read_metrics() if row["round"] <= rounds]
        temporary = self.path / ".metrics.partial"
        with self._saving("metrics.jsonl"):
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            os.replace(temporary, self.path / "metrics.jsonl")
        return rows

    @property
    def _checkpoints(self) -> Any:
        if self._manager is None:
            import orbax.checkpoint as ocp

            self._manager = ocp.CheckpointManager(
                self.path / "checkpoints",
                options=ocp.CheckpointManagerOptions(max_to_keep=CHECKPOINTS_KEPT, enable_async_checkpointing=False),
            )
        return self._manager

    def latest_round(self) -> int | None:
        """The round of the newest whole checkpoint, or None."""
        if not (self.path / "checkpoints").exists():
            return None
        return self._checkpoints.latest_step()

    def checkpoint_before(self, round_index: int) -> int | None:
        """The newest checkpoint of a round before this one, or None."""
        if not (self.path / "checkpoints").exists():
            return None
        return max((step for step in self._checkpoints.all_steps() if step < round_index), default=None)

    def save_checkpoint(self, round_index: int, arrays: PyTree, record: dict[str, Any]) -> None:
        """Write arrays and a JSON record as the checkpoint of a round; it appears whole or not at all."""
        import orbax.checkpoint as ocp

        arguments = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record))
        with self._saving(f"the checkpoint of round {round_index}"):
            self._checkpoints.save(round_index, args=arguments, force=True)

    def read_record(self, round_index: int) -> dict[str, Any]:
        """The JSON record of a checkpoint."""
        import orbax.checkpoint as ocp

        arguments = ocp.args.Composite(record=ocp.args.JsonRestore())
        return self._checkpoints.restore(round_index, args=arguments)["record"]

    def read_arrays(self, round_index: int, like: PyTree) -> PyTree:
        """The arrays of a checkpoint, in the structure, shapes and dtypes of `like`."""
        import orbax.checkpoint as ocp

        device = jax.local_devices()[0]
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=jax.sharding.SingleDeviceSharding(device)),
            like,
        )
        arguments = ocp.args.Composite(arrays=ocp.args.StandardRestore(target))
        return self._checkpoints.restore(round_index, args=arguments)["arrays"]

    def fresh_subfolder(self, name: str) -> Path:
        """An empty subfolder to write an export into; `publish` puts it in place."""
        temporary = self.path / f".{name}.partial"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        return temporary

    def publish(self, name: str) -> Path:
        """Put the subfolder written since `fresh_subfolder` in place of an older one."""
        final = self.path / name
        shutil.rmtree(final, ignore_errors=True)
        os.replace(self.path / f".{name}.partial", final)
        return final

    @contextlib.contextmanager
    def _saving(self, what: str):
        """Turn a failed write, whatever library it happened in, into one sentence."""
        try:
            yield
        except Exception as error:
            reason = (str(error).splitlines() or ["no reason given"])[0]
            if self.path.is_dir():
                reason += f"; {shutil.disk_usage(self.path).free:,} bytes free"
            raise RunError(
                f"{what} could not be saved in {self.path} ({type(error).__name__}: {reason}); the "
                "checkpoints saved before are whole: make room there and run again to resume."
            ) from error
