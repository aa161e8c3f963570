"""What happens beside the training of a run: at its beginning, after a stage's beginning, after each round, at its end.

A run's own files and lines are written by callbacks (`devft_jax.training.standard`), trackers are callbacks
(`devft_jax.training.trackers`), and `train(..., callbacks=[...])` takes a user's:

    class Losses(Callback):
        def on_round(self, run, row):
            print(row.round, row.loss, run.path)

Callbacks are called in order: evaluation, metrics, progress, report, trackers, the user's in the order given, checkpoints;
`on_end` in the opposite order. A round is thus in `metrics.jsonl` before a user's callback sees it, and saved after. An
exception in a callback ends the run and is raised by `train` as it is; what was saved before stays, and the same call goes
on from there. A run that was killed goes on from its last checkpoint: rounds after it are trained again, with the same
results, and callbacks see them again. A finished run that is asked for again calls none.
"""

from dataclasses import dataclass, field
from pathlib import Path

from devft_jax.config.run_config import RunConfig
from devft_jax.models.adapter import Adapter
from devft_jax.models.huggingface.model import Model
from devft_jax.reporting import Progress
from devft_jax.runtime.stopping import StopRequest
from devft_jax.storage import RunFolder
from devft_jax.storage.records import RoundRecord, RunRecord, StageRecord
from devft_jax.training.state import State
from devft_jax.training.trainer import Trainer


@dataclass
class Running:
    """A run under way, as callbacks see it.

    Callbacks read the properties and methods, `history`, `finished` and `resumed_after`; `trainer`, `state`, `folder` and
    `stop` are the package's own and may change.

    Attributes:
      trainer: of the run.
      state: all that changes.
      folder: of the run.
      stop: whether a stop was requested.
      resumed_after: the round of the checkpoint that the run goes on from; None for a new run.
      history: the rounds so far.
      finished: whether all rounds are done.
      seconds_beside: what callbacks have taken besides evaluation, in all rounds.
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
        """Where it is said what happens."""
        return self.trainer.parts.progress

    @property
    def round(self) -> int:
        """Rounds done, over all stages."""
        return self.state.round

    @property
    def rounds(self) -> int:
        """Rounds of the whole run, as planned by now."""
        return sum(self.state.totals.stage_rounds)

    @property
    def stages(self) -> list[StageRecord]:
        """The stages begun."""
        return self.state.totals.stages

    @property
    def at_end_of_stage(self) -> bool:
        """Whether the round just done is the last of its stage."""
        return self.state.rounds_in_stage == self.state.totals.stage_rounds[self.state.stage]

    @property
    def stopping(self) -> bool:
        """Whether the run stops after the round just done, because it was asked to."""
        return self.stop.signal is not None and self.round < self.rounds

    def record(self) -> RunRecord:
        """The figures of the run as it stands, from its first stage on."""
        return self.trainer.summary(self.state)

    def adapter(self) -> Adapter | None:
        """The global model's adapter at full depth with what was learned so far; None where every client has its own."""
        return self.trainer.global_adapter(self.state, ended=self.finished)


class Callback:
    """Called while a run goes on; the methods do nothing unless they are overridden."""

    def on_begin(self, run: Running) -> None:
        """Called before the first stage of a new run, and before a resumed one goes on.

        Args:
          run: of a resumed run with the history up to its checkpoint.
        """

    def on_stage(self, run: Running, stage: StageRecord) -> None:
        """Called when a stage has begun, before its first round.

        Args:
          run: the run.
          stage: its record, which is complete once the stage has ended.
        """

    def on_round(self, run: Running, row: RoundRecord) -> None:
        """Called after every round.

        Args:
          run: the run.
          row: the round's record; those of earlier rounds are in `run.history`, which ends with it.
        """

    def on_end(self, run: Running) -> None:
        """Called once the run has finished, its adapter and summary written, or was stopped after a round.

        Args:
          run: `run.finished` says which. A run that fails calls it not.
        """
