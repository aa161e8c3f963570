"""The callbacks of every run: evaluation, metrics, progress, report and checkpoints."""

from devft_jax.storage.records import RoundRecord, StageRecord
from devft_jax.training.callbacks import Callback, Running
from devft_jax.training.evaluate import evaluate_as_if_ended, evaluate_stage
from devft_jax.training.finishing import report
from devft_jax.training.fleet import round_line
from devft_jax.training.time_left import course_of, seconds_left


class Evaluation(Callback):
    """Evaluates held-out data every `evaluate_every` rounds within a stage, and adds the result to the round's record."""

    def on_round(self, run: Running, row: RoundRecord) -> None:
        """Evaluate the stage's model and, with `evaluate_full`, the full model."""
        every, parts = run.config.evaluate_every, run.trainer.parts
        if not every or run.round % every or run.at_end_of_stage:
            return
        judged = evaluate_stage(parts, run.state)
        if judged is not None:
            row.held_out_loss, row.held_out_accuracy = judged.loss, judged.accuracy
        if run.config.evaluate_full:
            full = judged if run.state.layer_map.is_identity else evaluate_as_if_ended(parts, run.state)
            if full is not None:
                row.full_loss, row.full_accuracy = full.loss, full.accuracy


class Metrics(Callback):
    """Writes `metrics.jsonl`, one line per round, and `record.json` with the run's current record."""

    def on_begin(self, run: Running) -> None:
        """Write the record of a resumed run, which replaces an earlier summary."""
        if run.resumed_after is not None:
            run.folder.write_unfinished(run.record())

    def on_stage(self, run: Running, stage: StageRecord) -> None:
        """Write the record including the stage that has begun."""
        run.folder.write_unfinished(run.record())

    def on_round(self, run: Running, row: RoundRecord) -> None:
        """Add the round's line."""
        run.folder.metrics.append(row)
        run.folder.write_unfinished(run.record())


class ProgressLines(Callback):
    """Prints the results of every round, and how long the rest will take."""

    def on_round(self, run: Running, row: RoundRecord) -> None:
        """A line."""
        totals = run.state.totals
        of_stage = [each.seconds for each in run.history if each.stage == row.stage]
        beside = run.seconds_beside / max(1, run.round - 1 - (run.resumed_after or 0))
        left = seconds_left(course_of(run.trainer.parts, totals), totals, of_stage, run.round, beside)
        run.progress.round(row, run.rounds, len(totals.stage_rounds), left)
        if row.simulated is not None:
            run.progress.say(round_line(row.simulated))


class Report(Callback):
    """Writes `report.html` when the run finishes or is stopped.

    Attributes:
      written: whether the page could be written.
    """

    def __init__(self) -> None:
        self.written = False

    def on_end(self, run: Running) -> None:
        """Write the page."""
        self.written = report(run.progress, run.folder)


class Checkpoints(Callback):
    """Saves a checkpoint every `checkpoint_every` rounds, at the end of each stage, after a best round, and when the run is
    stopped."""

    def __init__(self) -> None:
        self._saved = 0

    def on_begin(self, run: Running) -> None:
        """Note which round is already saved."""
        self._saved = run.round

    def on_round(self, run: Running, row: RoundRecord) -> None:
        """Save if it is time; always after a stage's last round, so that the stage can be exported."""
        best = run.state.totals.best
        due = run.round % run.config.checkpoint_every == 0 or (best is not None and best.round == run.round)
        if due or run.at_end_of_stage or run.stopping:
            self._save(run)

    def on_end(self, run: Running) -> None:
        """Save what is not saved yet if the run was stopped."""
        if not run.finished and self._saved < run.round:
            self._save(run)

    def _save(self, run: Running) -> None:
        run.trainer.save(run.folder, run.state)
        self._saved = run.round
