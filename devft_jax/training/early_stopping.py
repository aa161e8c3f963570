"""Early stopping: the best round of the last stage, and the end of a run that no longer improves.

Let l(n) be the held-out loss of the full model after round n, measured every `evaluate_every` rounds and after the last one,
and b the round of the last stage with the lowest l so far. The run ends after the first measured round n of the last stage
with

    n - max(b, n_0) >= `stop_after`,

where n_0 is the round after which the run was lengthened, if it was. Earlier stages train submodels, to whose end the full
model need not improve, so that their rounds do not count and are not cut. A run that ends so is finished; with more rounds
than were planned it continues. The checkpoint of round b is kept, so that its model can be exported in every form, and a
resumed run has the same best round.
"""

from devft_jax.storage.records import RoundRecord
from devft_jax.storage.result_records import BestRecord
from devft_jax.training.callbacks import Callback, Running
from devft_jax.training.evaluate import evaluate_as_if_ended, evaluate_stage


class EarlyStopping(Callback):
    """Finds the best round and ends the run; called after the evaluation and before the checkpoints."""

    def on_begin(self, run: Running) -> None:
        """Forget the best round of a resumed run if its checkpoint is no longer there."""
        best = run.state.totals.best
        if best is not None and best.round not in run.folder.checkpoints.saved_rounds():
            run.progress.warn(f"the checkpoint of the best round {best.round} is missing; the best of later rounds is kept.")
            run.state.totals.best = None

    def on_round(self, run: Running, row: RoundRecord) -> None:
        """Compare the round with the best one."""
        totals = run.state.totals
        if run.state.stage + 1 < len(totals.stage_rounds):
            return
        loss = _full_loss(run, row)
        if loss is None:
            return
        best = totals.best
        if best is None or loss < best.loss:
            if loss == loss:
                totals.best = BestRecord(round=row.round, loss=loss)
            return
        assert run.config.stop_after is not None
        if row.round - max(best.round, totals.lengthened_after) < run.config.stop_after or run.at_end_of_stage:
            return
        best.planned_rounds = run.rounds
        totals.stage_rounds[-1] = run.state.rounds_in_stage
        run.progress.say(
            f"  no lower held-out loss since round {best.round} ({best.loss:.4f}): the run ends after round {row.round} of "
            f"{best.planned_rounds}"
        )


def _full_loss(run: Running, row: RoundRecord) -> float | None:
    """The full model's held-out loss after a round; None if the round is not measured."""
    parts, state = run.trainer.parts, run.state
    full_depth = state.layer_map.is_identity
    measured = row.held_out_loss if full_depth else row.full_loss
    if measured is not None or (run.round % run.config.evaluate_every and not run.at_end_of_stage):
        return measured
    judged = evaluate_stage(parts, state) if full_depth else evaluate_as_if_ended(parts, state)
    return None if judged is None else judged.loss
