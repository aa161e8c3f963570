"""The checkpoint of a run that is asked for: the newest, a stage's newest, or that of a round."""

from typing import Literal

from devft_jax.errors import InputError
from devft_jax.storage.run_folder import RunFolder


def chosen_round(folder: RunFolder, stage: int | None, round: int | Literal["best"] | None = None) -> int:
    """The round of the requested checkpoint: the newest, a given stage's newest, or that of a given or the best round.

    Args:
      folder: the run's folder.
      stage: from 1; None for any.
      round: from 1, or "best" for that of lowest held-out loss; None for the newest.

    Raises:
      InputError: there is no such checkpoint, or a damaged one may be the requested one.
    """
    if stage is not None and round is not None:
        raise InputError("stage and round each choose a checkpoint; give one of them.")
    rounds = folder.checkpoints.last_rounds()
    if not rounds:
        raise InputError(f"the run in {folder.path} has no checkpoint yet; let it train up to its first one.")
    newest = max(rounds.values())
    if isinstance(round, str):
        best = folder.checkpoints.read_record(newest).totals.best
        if best is None:
            raise InputError(
                f"the run in {folder.path} did not look for its best round; run it with --stop-after, or choose another "
                "round."
            )
        round = best.round
    if round is not None:
        saved = folder.checkpoints.saved_rounds()
        if round not in saved:
            raise InputError(
                f"the run in {folder.path} keeps no checkpoint of round {round}; choose from {', '.join(map(str, saved))}."
            )
        return round
    if stage is None:
        return _not_in_place_of_a_damaged_one(folder, newest)
    record = folder.checkpoints.read_record(newest)
    stages = len(record.totals.stage_rounds)
    if not 1 <= stage <= stages:
        raise InputError(f"stage {stage} is outside 1 to {stages}, the stages of the run in {folder.path}.")
    if stage - 1 in rounds:
        return _not_in_place_of_a_damaged_one(folder, rounds[stage - 1])
    kept = ", ".join(str(other + 1) for other in rounds)
    if stage - 1 > record.stage:
        raise InputError(
            f"the run in {folder.path} has not saved stage {stage} yet; choose from {kept}, or continue the run."
        )
    raise InputError(
        f"the run in {folder.path} has no readable checkpoint of stage {stage} any more; restore it, or choose from {kept}."
    )


def _not_in_place_of_a_damaged_one(folder: RunFolder, chosen: int) -> int:
    """The round; raises `InputError` if the checkpoint after it cannot be read and may be the requested one."""
    after = folder.checkpoints.after(chosen)
    if after is not None:
        folder.checkpoints.read_record(after)
    return chosen


def round_at_end_of_stage(folder: RunFolder, stage: int | None) -> int:
    """The round of the checkpoint at the end of a stage.

    Args:
      folder: the run's folder.
      stage: from 1; None for the newest stage.

    Raises:
      InputError: there is no such stage, or it has not ended yet.
    """
    number = chosen_round(folder, stage)
    record = folder.checkpoints.read_record(number)
    planned = record.totals.stage_rounds[record.stage]
    if record.rounds_in_stage < planned:
        before = f", or choose stage {record.stage}" if record.stage else ""
        raise InputError(
            f"stage {record.stage + 1} of the run in {folder.path} has not ended: {record.rounds_in_stage} of its {planned} "
            f"rounds are saved; continue the run{before}."
        )
    return number
