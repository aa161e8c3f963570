"""The options of evaluations on held-out data."""

from dataclasses import dataclass

from devft_jax.data import HELD_OUT
from devft_jax.options import Need, execution, option

WITHIN_STAGES = Need(
    lambda config: config.evaluate_every > 0,
    "has no effect without evaluations within the stages",
    "give --evaluate-every",
)


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """When and how models are evaluated on the held-out data; if every client has its own model, all of them are."""

    evaluate_every: int = execution(
        0, at_least=0, remedy="0 evaluates only at the beginning and end of stages", needs=[HELD_OUT]
    )
    """Rounds between evaluations within a stage; 0 evaluates only at the beginning and end of stages."""
    evaluate_full: bool = execution(False, needs=[HELD_OUT, WITHIN_STAGES])
    """Evaluate not only the stage's submodel but also the full model as if the stage ended there."""
    stop_after: int | None = option(None, at_least=1, needs=[HELD_OUT, WITHIN_STAGES])
    """End the run if the full model's held-out loss, measured every `evaluate_every` rounds, has not become lower in this
    many rounds of the last stage; earlier stages are not shortened. The best round's adapter is written to adapter-best/."""
    evaluation_batch: int = execution(32, at_least=1, at_most=10**6)
    """Held-out examples evaluated at once."""
