"""The options of a federated run: protocol and learning rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from devft_jax.errors import InputError
from devft_jax.options import execution

MESSAGE_DTYPES = ("float32", "bfloat16", "float16")
WEIGHTINGS = ("method", "examples", "uniform")
LENGTHENED_RATES = ("schedule", "end")
SCHEDULES = ("constant", "cosine", "cosine-per-stage", "linear", "linear-per-stage")


@dataclass(frozen=True, kw_only=True)
class FederatedOptions:
    """Clients, rounds and messages."""

    algorithm: str = "fedit"
    """Federated algorithm, see `devft list`."""
    rounds: int = 40
    """Federated rounds of all stages together."""
    clients_per_round: int = 2
    """Participants of a round, drawn uniformly without replacement."""
    local_steps: int = 10
    """Optimiser steps of a participant in a round."""
    batch_size: int = 16
    """Examples of an optimiser step."""
    weighting: str = "method"
    """A message's weight: examples (the client's number of them), uniform, or method: examples, but uniform for those
    methods whose definition is a plain mean (flasc, hetlora, fedadagrad, fedyogi, fedadam, fedex-lora)."""
    message_dtype: str = "float32"
    """Precision in which messages travel, both ways: float32, bfloat16 or float16."""
    max_nonfinite: float = execution(0.5)
    """Share of a round's participants whose update may be NaN or infinite and is dropped; above it the run stops."""


@dataclass(frozen=True, kw_only=True)
class LearningRateOptions:
    """The clients' learning rate, constant within a round."""

    learning_rate: tuple[float, ...] = (1e-4,)
    """One rate, or one per stage, such as the paper's 1e-6,1e-5,1e-4,1e-4."""
    schedule: str = "cosine"
    """constant, or a fall by a cosine or along a line: cosine, linear (over all rounds), cosine-per-stage, linear-per-stage
    (restarting at each stage)."""
    min_learning_rate: float = 1e-6
    """Where a cosine or a line ends; a rate below it stays as it is."""
    rate_warmup_rounds: int = 0
    """Rounds at the start, of the run or with -per-stage of each stage, in which the rate rises along a line."""
    lengthened_rate: str = execution("schedule")
    """Rate of the rounds by which a run is lengthened: schedule (that of a run of the new length, which rises again where
    the old one had come down) or end (where the schedule of the old length ended)."""


def validate_federated(options: FederatedOptions) -> None:
    """Raise `InputError` unless the options describe a protocol; algorithm and number of clients are checked elsewhere."""
    choices = {
        "weighting": WEIGHTINGS,
        "message_dtype": MESSAGE_DTYPES,
    }
    for name, allowed in choices.items():
        if getattr(options, name) not in allowed:
            raise InputError(f"{name} '{getattr(options, name)}' is unknown; choose from {', '.join(allowed)}.")
    for name in ("rounds", "clients_per_round", "local_steps", "batch_size"):
        if getattr(options, name) < 1:
            raise InputError(f"{name} {getattr(options, name)} is not positive; use 1 or more.")
    if not 0 <= options.max_nonfinite < 1:
        raise InputError(f"max_nonfinite {options.max_nonfinite} is outside [0, 1); 0.5 is usual.")


def validate_learning_rate(options: LearningRateOptions, stages: int | None = None) -> None:
    """Raise `InputError` unless the rates are positive and, where the stages are known, one or one per stage."""
    if options.schedule not in SCHEDULES:
        raise InputError(f"schedule '{options.schedule}' is unknown; choose from {', '.join(SCHEDULES)}.")
    rates = options.learning_rate
    if not rates or any(not 0 <= rate < math.inf for rate in rates):
        raise InputError(f"learning_rate {rates} must be one or more finite rates of 0 or above.")
    if options.rate_warmup_rounds < 0:
        raise InputError(f"rate_warmup_rounds {options.rate_warmup_rounds} is negative; use 0 or more.")
    if options.lengthened_rate not in LENGTHENED_RATES:
        raise InputError(
            f"lengthened_rate '{options.lengthened_rate}' is unknown; choose from {', '.join(LENGTHENED_RATES)}."
        )
    if options.min_learning_rate < 0:
        raise InputError(f"min_learning_rate {options.min_learning_rate} is negative; use 0 or more.")
    if stages is not None and len(rates) not in (1, stages):
        raise InputError(f"learning_rate has {len(rates)} rates for {stages} stages; give one, or one per stage.")


def learning_rate_at(options: LearningRateOptions, stage_rounds: Sequence[int], stage: int, round_in_stage: int) -> float:
    """The rate of a round.

    With t from 0 over T rounds, of all stages or of the stage, W rounds of warm-up, and x = (t - W) / (T - W),

        t < W       rate (t + 1) / (W + 1)
        constant    rate
        cosine      min + (rate - min) (1 + cos(pi x)) / 2
        linear      min + (rate - min) (1 - x)

    The cosine is OpenFedLLM's. All of them begin at the rate itself and would reach `min` one round after the last. A
    warm-up of as many rounds as there are, or more, rises to the end.

    Args:
      options: of the learning rate.
      stage_rounds: rounds of each stage.
      stage: from 0.
      round_in_stage: from 0.
    """
    rates = options.learning_rate
    rate = rates[stage] if len(rates) > 1 else rates[0]
    done, total = sum(stage_rounds[:stage]) + round_in_stage, sum(stage_rounds)
    if options.schedule.endswith("-per-stage"):
        done, total = round_in_stage, stage_rounds[stage]
    warmup, floor = options.rate_warmup_rounds, options.min_learning_rate
    if done < warmup:
        return rate * (done + 1) / (warmup + 1)
    # Past the end of a schedule that is all warm-up, as where a run is lengthened, nothing falls.
    if options.schedule == "constant" or rate <= floor or total <= warmup:
        return rate
    fallen = (done - warmup) / (total - warmup)
    left = 1 - fallen if options.schedule.startswith("linear") else (1 + math.cos(math.pi * fallen)) / 2
    return floor + (rate - floor) * left
