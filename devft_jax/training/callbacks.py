"""Callbacks: code that runs at the start of a run, of each stage, after each round, after all of them, and at the end.

A run's own files and progress lines are written by callbacks (`devft_jax.training.standard`), trackers are callbacks
(`devft_jax.training.trackers`), and `train(..., callbacks=[...])` takes the user's own:

    class Losses(Callback):
        def on_round(self, run, row):
            print(row.round, row.loss, run.path)

Callbacks are called in this order: evaluation, scores on tasks, early stopping, metrics, progress, report, trackers, the
user's in the given order, checkpoints; `on_end` in the opposite order. A round is thus in `metrics.jsonl` before a user's
callback sees it, and in a checkpoint after. An exception in a callback ends the run, and `train` raises it unchanged;
everything saved before is kept, and the same call resumes the run. A run that was killed resumes from its last checkpoint:
later rounds are trained again, with the same results, and callbacks see them again. For a run that is already finished no
callback is called.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devft_jax.config.run_config import RunConfig
from devft_jax.models.adapter import Adapter
from devft_jax.models.huggingface.model import Model
from devft_jax.reporting import Progress
from devft_jax.runtime.stopping import StopRequest
from devft_jax.storage.records import RoundRecord, RunRecord, StageRecord
from devft_jax.storage.run_folder import RunFolder
from devft_jax.training.state import State
from devft_jax.training.trainer import Trainer


@dataclass
class Running:
    """A run in progress, as callbacks see it.

    Callbacks may read the properties and methods, `history`, `finished` and `resumed_after`; `trainer`, `state`, `folder`
    and `stop` are internal and may change.

    Attributes:
      trainer: the run's trainer.
      state: everything that changes during the run.
      folder: the run's folder.
      stop: whether a stop was requested.
      resumed_after: the round of the checkpoint from which the run was resumed; None for a new run.
      history: the records of the rounds so far.
      finished: whether all rounds are done.
      seconds_beside: seconds that callbacks other than evaluation have taken in all rounds.
    """

    trainer: Trainer
    state: State
    folder: RunFolder
    stop: StopRequest
    resumed_after: int | None = None
    history: list[RoundRecord] = field(default_factory=list)
    finished: bool = False
    seconds_beside: float = 0.0

    @property
    def config(self) -> RunConfig:
        """The configuration."""
        return self.trainer.parts.config

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.folder.path

    @property
    def model(self) -> Model:
        """The base model."""
        return self.trainer.parts.model

    @property
    def progress(self) -> Progress:
        """The progress output of the run."""
        return self.trainer.parts.progress

    @property
    def round(self) -> int:
        """Rounds done, over all stages."""
        return self.state.round

    @property
    def rounds(self) -> int:
        """Rounds of the whole run, as planned at this point."""
        return sum(self.state.totals.stage_rounds)

    @property
    def stages(self) -> list[StageRecord]:
        """The records of all stages that have begun."""
        return self.state.totals.stages

    @property
    def at_end_of_stage(self) -> bool:
        """Whether the last finished round is the last of its stage."""
        return self.state.rounds_in_stage == self.state.totals.stage_rounds[self.state.stage]

    @property
    def stopping(self) -> bool:
        """Whether the run stops after the last finished round, because a stop was requested."""
        return self.stop.signal is not None and self.round < self.rounds

    def record(self) -> RunRecord:
        """The run's record up to now; at least one stage must have begun."""
        return self.trainer.summary(self.state)

    def adapter(self) -> Adapter | None:
        """The global model's adapter at full depth, with what was learned so far; None if every client has its own model."""
        return self.trainer.global_adapter(self.state, ended=self.finished)


class Callback:
    """Methods that are called during a run; they do nothing unless they are overridden.

    A subclass with another method that begins with `on_` is a TypeError, because it would never be called.
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Refuse a class with a misspelt method.

        Raises:
          TypeError: a method begins with `on_` and is none of those below.
        """
        super().__init_subclass__(**arguments)
        known = [name for name in vars(Callback) if name.startswith("on_")]
        for name in vars(cls):
            if name.startswith("on_") and name not in known:
                raise TypeError(f"{cls.__qualname__}.{name} is never called; a callback has {', '.join(known)}.")

    def on_begin(self, run: Running) -> None:
        """Called before the first stage of a new run, and before a resumed run continues.

        Args:
          run: the run; a resumed one has the history up to its checkpoint.
        """

    def on_stage(self, run: Running, stage: StageRecord) -> None:
        """Called after a stage has begun and before its first round.

        Args:
          run: the run.
          stage: the stage's record; it is complete only when the stage has ended.
        """

    def on_round(self, run: Running, row: RoundRecord) -> None:
        """Called after every round.

        Args:
          run: the run.
          row: the round's record; it is also the last entry of `run.history`.
        """

    def on_trained(self, run: Running) -> None:
        """Called when all rounds are done and the last stage has ended, before adapter and summary are written.

        Args:
          run: the run; `run.adapter()` is the final one.
        """

    def on_end(self, run: Running) -> None:
        """Called after the run has finished, with its adapter and summary written, or was stopped after a round.

        Args:
          run: the run; `run.finished` tells the two cases apart. A run that fails does not call this method.
        """
