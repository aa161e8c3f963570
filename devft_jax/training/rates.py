"""The learning rate of a run's rounds, also after the run was lengthened."""

import dataclasses

from devft_jax.config.run_config import RunConfig
from devft_jax.federated.options import learning_rate_at
from devft_jax.reporting import Progress
from devft_jax.storage.records import CheckpointRecord, RunTotals


def rate_of(config: RunConfig, totals: RunTotals, stage: int, round_in_stage: int) -> float:
    """The learning rate of a round; after the end of a schedule that was not lengthened with the run, its last rate.

    Args:
      config: the configuration with the schedule.
      totals: the run's totals with the rounds of every stage.
      stage: from 0.
      round_in_stage: from 0.
    """
    planned = sum(totals.stage_rounds)
    beyond = max(0, planned - (planned if totals.rate_ends_after is None else totals.rate_ends_after))
    scheduled = (*totals.stage_rounds[:-1], totals.stage_rounds[-1] - beyond)
    return learning_rate_at(config, scheduled, stage, min(round_in_stage, scheduled[stage]))


def lengthen(config: RunConfig, record: CheckpointRecord, stage_rounds: tuple[int, ...], progress: Progress) -> None:
    """Give a run more rounds: decide which schedule it follows from now on, and report what happens to its learning rate.

    Args:
      config: the configuration with `lengthened_rate`.
      record: record of the checkpoint from which the run is resumed; changed.
      stage_rounds: of every stage from now on; only the last one grows.
      progress: the progress output.
    """
    totals, total = record.totals, sum(stage_rounds)
    planned, last_of_plan = sum(totals.stage_rounds), totals.stage_rounds[-1]
    before = rate_of(config, totals, record.stage, record.rounds_in_stage - 1)
    at_end = dataclasses.replace(totals, stage_rounds=list(stage_rounds), rate_ends_after=planned)
    end = rate_of(config, at_end, len(stage_rounds) - 1, last_of_plan)
    totals.stage_rounds = list(stage_rounds)
    totals.lengthened_after = record.round
    if config.lengthened_rate != "end":
        totals.rate_ends_after = None
    elif totals.rate_ends_after is None:
        totals.rate_ends_after = planned
    stage, done = record.stage, record.rounds_in_stage
    stage, done = (stage, done) if done < stage_rounds[stage] else (stage + 1, 0)
    after = rate_of(config, totals, stage, done)
    if after == before:
        return
    said = (
        f"lengthened from {planned} to {total} rounds: the learning rate is {before:.3g} in round {record.round} and "
        f"{after:.3g} in round {record.round + 1}"
    )
    if after > before and config.lengthened_rate == "schedule":
        progress.warn(
            f"{said}, as schedule {config.schedule} gives it for a run of {total}; use --lengthened-rate end to continue "
            f"at {end:.3g}, the rate at which the schedule had ended."
        )
    else:
        progress.say(said)
