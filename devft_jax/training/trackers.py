"""Trackers: log every round's metrics to a CSV file, TensorBoard or Weights & Biases, as the option `track` says.

A step is a round, from 1. A run that is resumed logs no round twice: the CSV file and TensorBoard's files are rewritten
from the rounds so far, and Weights & Biases gets only the rounds that it does not have.
"""

import csv
import importlib
import io
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from devft_jax.config.files import to_plain
from devft_jax.config.run_config import RunConfig
from devft_jax.errors import InputError
from devft_jax.files import write_atomically
from devft_jax.storage.record import Record
from devft_jax.storage.records import RoundRecord, StageRecord
from devft_jax.training.callbacks import Callback, Running

CSV_FILE = "metrics.csv"
TENSORBOARD_FOLDER = "tensorboard"
WANDB_FOLDER, WANDB_FILE = "wandb", "wandb.json"


def trackers_of(config: RunConfig) -> list[Callback]:
    """The trackers that a configuration names.

    Raises:
      InputError: a package that one of them needs is missing.
    """
    make: dict[str, Callable[[], Callback]] = {
        "csv": CsvTracker,
        "tensorboard": lambda: TensorBoardTracker(_package("tensorboardX", "tensorboard")),
        "wandb": lambda: WandbTracker(_package("wandb", "wandb")),
    }
    return [make[name]() for name in config.track or ()]


def _package(name: str, track: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"track {track} needs the package {name}, which is not installed; run `pip install {name}`, or leave it out."
        ) from error


def scalars(record: Record) -> dict[str, float]:
    """The values of a record that are finite numbers, by name, without `round`; scores as `scores/TASK/METRIC`, and on a
    fleet `simulated/seconds` and `simulated/clock`."""
    plain = record.to_plain().items()
    numbers = {name: value for name, value in plain if isinstance(value, int | float) and math.isfinite(value)}
    numbers.pop("round", None)
    simulated = getattr(record, "simulated", None)
    if simulated is not None:
        numbers |= {
            f"simulated/{name}": getattr(simulated, name) for name in ("seconds", "clock") if hasattr(simulated, name)
        }
    return numbers | dict(_scores(record))


def _scores(record: Record) -> Iterator[tuple[str, float]]:
    """The scores of a record on benchmark tasks, with their standard errors, where they are finite."""
    for kind in ("scores", "base_scores", "final_scores"):
        for score in getattr(record, kind, None) or ():
            for ending, value in (("", score.value), ("_stderr", score.standard_error)):
                if value is not None and math.isfinite(value):
                    yield "/".join((kind, *score.name)) + ending, value


class CsvTracker(Callback):
    """Writes `metrics.csv`, one line per round, with a column for every metric that any round has."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def on_begin(self, run: Running) -> None:
        """Write the rounds so far."""
        self._write(run)

    def on_round(self, run: Running, row: RoundRecord) -> None:
        """Add the round's line; a metric that no earlier round had adds a column."""
        if not scalars(row).keys() <= set(self._names):
            self._write(run)
            return
        with open(run.path / CSV_FILE, "a", encoding="utf-8", newline="") as file:
            file.write(self._lines([row]))

    def _write(self, run: Running) -> None:
        self._names = list(dict.fromkeys(name for row in run.history for name in scalars(row)))
        heading = io.StringIO()
        csv.writer(heading).writerow(["round", *self._names])
        write_atomically(run.path / CSV_FILE, heading.getvalue() + self._lines(run.history))

    def _lines(self, rows: list[RoundRecord]) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, ["round", *self._names], restval="")
        writer.writerows({"round": row.round, **scalars(row)} for row in rows)
        return text.getvalue()


class TensorBoardTracker(Callback):
    """Writes event files for TensorBoard into `tensorboard/`: rounds as `round/NAME`, ends of stages as `stage/NAME`.

    Args:
      package: the module tensorboardX.
    """

    def __init__(self, package: Any):
        self._package = package
        self._writer: Any = None
        self._ended = 0

    def on_begin(self, run: Running) -> None:
        """Write the rounds and stages so far."""
        folder = run.path / TENSORBOARD_FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = self._package.SummaryWriter(str(folder))
        self._ended = 0
        done = 0
        for row in run.history:
            if row.stage > done:
                self._stages_ended(run, row.stage, row.round - 1)
                done = row.stage
            self._add("round", scalars(row), row.round)
        self._writer.flush()

    def on_stage(self, run: Running, stage: StageRecord) -> None:
        """Write the final metrics of the previous stage."""
        self._stages_ended(run, len(run.stages) - 1, run.round)

    def on_round(self, run: Running, row: RoundRecord) -> None:
        """Write the round."""
        self._add("round", scalars(row), row.round)
        self._writer.flush()

    def on_end(self, run: Running) -> None:
        """Write the final metrics of the last stage, and close the file."""
        if run.finished:
            self._stages_ended(run, len(run.stages), run.round)
            self._add("run", dict(_scores(run.record())), run.round)
        self._writer.close()

    def _stages_ended(self, run: Running, count: int, step: int) -> None:
        for stage in run.stages[self._ended : count]:
            self._add("stage", scalars(stage), step)
        self._ended = count

    def _add(self, kind: str, figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)


@dataclass(frozen=True, kw_only=True)
class SentRecord(Record):
    """`wandb.json`: what Weights & Biases has of the run.

    Attributes:
      id: of the run there.
      round: the last one sent, from 1.
    """

    where = "wandb.json"

    id: str
    round: int


class WandbTracker(Callback):
    """Sends rounds to Weights & Biases, or writes them to `wandb/` if WANDB_MODE is offline.

    The run's id and the last round that was sent are in `wandb.json`; project, entity and mode are Weights & Biases' own
    settings (WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE), with devft as the default project.

    Args:
      package: the module wandb.
    """

    def __init__(self, package: Any):
        self._package = package
        self._tracked: Any = None
        self._last = 0

    def on_begin(self, run: Running) -> None:
        """Start the run there, or resume it."""
        stored = None if run.resumed_after is None else run.folder.read_json(WANDB_FILE)
        sent = None if stored is None else SentRecord.from_plain(stored, run.path)
        name, self._last = (None, 0) if sent is None else (sent.id, sent.round)
        settings = self._package.Settings()
        self._tracked = self._package.init(
            project=settings.project or "devft",
            name=run.path.name,
            id=name,
            resume="allow",
            dir=str(run.path),
            config=to_plain(run.config),
        )
        # Rounds from before the run was tracked.
        for row in run.history:
            self._send(run, row)

    def on_round(self, run: Running, row: RoundRecord) -> None:
        """Send the round, unless it was sent before the run was killed and trained again."""
        self._send(run, row)

    def on_end(self, run: Running) -> None:
        """Send the result, and finish the run there."""
        self._tracked.summary.update(scalars(run.record()))
        self._tracked.finish()

    def _send(self, run: Running, row: RoundRecord) -> None:
        if row.round <= self._last:
            return
        self._tracked.log(scalars(row), step=row.round)
        self._last = row.round
        write_atomically(
            run.path / WANDB_FILE, json.dumps(SentRecord(id=self._tracked.id, round=row.round).to_plain()) + "\n"
        )
