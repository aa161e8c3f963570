"""The options of a federated run: protocol, learning rate and the clients' optimiser."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from devft_jax.errors import InputError
from devft_jax.options import Need, check_options, execution, option

STAGES_AGREE = Need(
    lambda config: config.stage_rounds is None or config.rounds == sum(config.stage_rounds),
    lambda config: (
        f"disagrees, as stage_rounds names {len(config.stage_rounds)} stages of {','.join(map(str, config.stage_rounds))} "
        f"rounds, {sum(config.stage_rounds)} in all"
    ),
    "make them agree",
)
ABOVE_FLOOR = Need(
    lambda config: max(config.learning_rate) > config.min_learning_rate,
    "has no effect where no learning_rate is above min_learning_rate, since a rate below it stays as it is",
    "lower min_learning_rate",
)
FALLING = Need(
    lambda config: config.schedule != "constant",
    "has no effect with the schedule constant, which never changes the rate",
    "use another --schedule",
)

OWN_ALGORITHM = Need(
    lambda config: ":" in config.algorithm,
    lambda config: f"is read by user-defined algorithms only and the algorithm is {config.algorithm}",
    "name one that declares options, as package.module:name",
    "algorithm",
)
WARM = Need(
    lambda config: config.adapter is not None or config.init_from is not None,
    "has no effect on a run that begins with a new adapter",
    "give --adapter or --init-from",
)
FROM_A_RUN = Need(
    lambda config: config.init_from is not None,
    "chooses a stage of the run that init_from names and there is none",
    "give --init-from",
)
ADAMW = {"optimizer": ("adamw",)}
"""The condition under which adamw's options are read."""


@dataclass(frozen=True, kw_only=True)
class FederatedOptions:
    """Clients, rounds and messages."""

    algorithm: str = "fedit"
    """Federated algorithm: a name of `devft list`, or a user-defined one as package.module:name."""
    algorithm_options: tuple[str, ...] | None = option(None, needs=[OWN_ALGORITHM])
    """Options that a user-defined algorithm declares, as name=value; `devft list package.module:name` shows them."""
    rounds: int = option(40, at_least=1, at_most=10**5, needs=[STAGES_AGREE])
    """Federated rounds of all stages together."""
    clients_per_round: int = option(2, at_least=1, at_most=10**6)
    """Participants of a round, drawn uniformly without replacement."""
    local_steps: int = option(10, at_least=1, at_most=10**6)
    """Optimiser steps of a participant per round."""
    batch_size: int = option(16, at_least=1, at_most=10**6)
    """Examples per optimiser step."""
    weighting: str = option("method", choices=("method", "examples", "uniform"))
    """Weight of a message: examples (the number of its client's examples), uniform, or method: examples, but uniform for
    methods that are defined with a plain mean (flasc, hetlora, fedadagrad, fedyogi, fedadam, fedex-lora)."""
    message_dtype: str = option("float32", choices=("float32", "bfloat16", "float16"))
    """Precision of messages, both ways: float32, bfloat16 or float16."""
    max_nonfinite: float = execution(0.5, within="[0, 1)", remedy="0.5 is usual")
    """Share of a round's participants whose update may be NaN or infinite and is dropped; above it the run stops."""


@dataclass(frozen=True, kw_only=True)
class LearningRateOptions:
    """The clients' learning rate, constant within a round."""

    learning_rate: tuple[float, ...] = option((1e-4,), at_least=0)
    """One rate, or one per stage, such as the paper's 1e-6,1e-5,1e-4,1e-4."""
    schedule: str = option(
        "cosine",
        choices=("constant", "cosine", "cosine-per-stage", "linear", "linear-per-stage"),
        needs=[ABOVE_FLOOR],
    )
    """How the rate changes: constant, or decaying by a cosine or linearly: cosine, linear (over all rounds),
    cosine-per-stage, linear-per-stage (restarting at each stage)."""
    min_learning_rate: float = option(1e-6, at_least=0, needs=[FALLING, ABOVE_FLOOR])
    """Final rate of a cosine or linear decay; a rate below it is not changed."""
    rate_warmup_rounds: int = option(0, at_least=0)
    """Warm-up rounds at the beginning of the run, or with -per-stage of each stage, in which the rate rises linearly."""
    lengthened_rate: str = execution("schedule", choices=("schedule", "end"))
    """Rate of the rounds by which a run is lengthened: schedule (that of a run of the new length, which rises again where
    the old one had decayed) or end (the final rate of the old schedule)."""


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """The optimiser that every client runs, rebuilt in every round."""

    optimizer: str = option("adamw", choices=("adamw", "sgd"))
    """Optimiser of the local steps: adamw or sgd."""
    weight_decay: float = option(0.0, at_least=0, when=ADAMW)
    """Decoupled weight decay of adamw."""
    clip_norm: float = option(1.0, at_least=0)
    """Global norm to which a step's gradient is clipped; 0 switches clipping off."""
    beta1: float = option(0.9, within="[0, 1)", remedy="0.9 is usual", when=ADAMW)
    """Decay of adamw's first moment."""
    beta2: float = option(0.999, within="[0, 1)", remedy="0.999 is usual", when=ADAMW)
    """Decay of adamw's second moment."""
    lora_plus_ratio: float = option(1.0, above=0, remedy="1 is usual, and 16 for LoRA+")
    """Learning rate of b divided by that of a, which is the run's rate: 1 for equal rates; LoRA+ uses a larger ratio."""
    epsilon: float = option(1e-8, above=0, remedy="1e-8 is usual", when=ADAMW)
    """Term added to adamw's denominator."""


@dataclass(frozen=True, kw_only=True)
class WarmStartOptions:
    """An existing adapter to begin with."""

    adapter: str | None = execution(None, path=True)
    """Adapter to begin with: a PEFT folder, or a finished run's folder for its final adapter. A smaller rank is padded and
    another alpha / rank converted, so that the update is the same; a larger rank or other targets are refused."""
    init_from: str | None = execution(None, path=True)
    """Run to begin with the adapter of, at full depth, as it was at the end of a stage."""
    stage: int | None = execution(None, at_least=1, needs=[FROM_A_RUN])
    """The stage of the run in `init_from`, counted from 1; by default the newest, which must have ended."""
    truncate_adapter: bool = option(False, needs=[WARM])
    """Replace an adapter of larger rank by the nearest one of the run's rank, from its singular value decomposition."""
    adapter_digest: str | None = option(None, needs=[WARM])
    """Digest of what the adapter contains, which every run records; given, another content is refused."""


def validate_learning_rate(options: LearningRateOptions, stages: int | None = None) -> None:
    """Raise `InputError` unless the rates are positive and, if the stages are known, there is one or one per stage."""
    check_options(options)
    rates = options.learning_rate
    if stages is not None and len(rates) not in (1, stages):
        raise InputError(f"learning_rate has {len(rates)} rates for {stages} stages; give one, or one per stage.")


def learning_rate_at(options: LearningRateOptions, stage_rounds: Sequence[int], stage: int, round_in_stage: int) -> float:
    """The rate of a round.

    With t from 0 over T rounds, of all stages or of the stage, W rounds of warm-up, and x = (t - W) / (T - W),

        t < W       rate (t + 1) / (W + 1)
        constant    rate
        cosine      min + (rate - min) (1 + cos(pi x)) / 2
        linear      min + (rate - min) (1 - x)

    The cosine is OpenFedLLM's. All schedules begin at the rate itself and would reach `min` one round after the last. A
    warm-up of as many rounds as there are, or more, rises until the end.

    Args:
      options: options of the learning rate.
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
    # After the end of a schedule that is all warm-up, for example in a lengthened run, the rate does not decay.
    if options.schedule == "constant" or rate <= floor or total <= warmup:
        return rate
    fallen = (done - warmup) / (total - warmup)
    left = 1 - fallen if options.schedule.startswith("linear") else (1 + math.cos(math.pi * fallen)) / 2
    return floor + (rate - floor) * left
