"""The stages of a run from its configuration: the growth, the rounds of each stage, and when a stage ends.

With `stage_end` plateau every stage except the last ends early once the mean training loss of its participants has
flattened. Let m(n) be the mean of the losses of rounds n - w + 1 .. n of the stage, w = `plateau_rounds`. It ends at the
first n with

    m(n) > (1 - `plateau_improvement`) m(n - w),    n >= 2 w,  n >= `min_stage_rounds`.

The loss of a single round is that of the few clients drawn, so means are compared. The rule depends only on the rounds so
far, so a resumed run ends its stages in the same rounds as an uninterrupted one.
"""

from collections.abc import Iterable, Sequence

from devft_jax.config.run_config import RunConfig
from devft_jax.developmental import Growth, StageShape
from devft_jax.errors import InputError
from devft_jax.federated.algorithm import Algorithm


def plan_stages(config: RunConfig, growth: Growth, num_layers: int) -> tuple[int, ...]:
    """Rounds of each stage: as configured, or divided in the shares that the growth proposes."""
    # Configured rounds are compared only by their number, so the proposal may be for any number of rounds.
    rounds = config.rounds if config.stage_rounds is None else max(config.rounds, 10**6)
    try:
        proposed = growth.stage_rounds(rounds, num_layers)
    except ValueError as error:
        raise InputError(str(error)) from error
    if config.stage_rounds is not None:
        if proposed is not None and len(config.stage_rounds) != len(proposed):
            raise InputError(
                f"stage_rounds has {len(config.stage_rounds)} values and the growth {len(proposed)} stages; "
                "give one number of rounds per stage."
            )
        return config.stage_rounds
    if proposed is None:
        raise InputError(
            "stage_rounds is needed for a growth that does not announce its stages; give the rounds of "
            "each, such as (20, 20)."
        )
    return proposed


def check_composition(algorithm: Algorithm, stages: Iterable[StageShape]) -> None:
    """Raise `InputError` if an algorithm cannot train a stage in the way that the growth asks for."""
    for number, stage in enumerate(stages, 1):
        kept = stage.layers - stage.trained
        if kept and not algorithm.layered:
            raise InputError(
                f"{algorithm.name} trains weights that all layers share, but the growth freezes {kept} of the "
                f"{stage.layers} layers of stage {number}; choose another growth or algorithm."
            )


def has_flattened(losses: Sequence[float], *, window: int, improvement: float) -> bool:
    """Whether the mean of the last `window` losses is less than the fraction `improvement` below that of the `window`
    before."""
    if len(losses) < 2 * window:
        return False
    last, before = sum(losses[-window:]), sum(losses[-2 * window : -window])
    return last > (1 - improvement) * before


def after_round(config: RunConfig, planned: Sequence[int], stage: int, losses: Sequence[float]) -> tuple[int, ...]:
    """The rounds of each stage after a round; the current stage is cut short if it ends here.

    Args:
      config: decides when stages end.
      planned: rounds of all stages before this decision.
      stage: the current stage, from 0.
      losses: losses of its rounds so far.
    """
    done, last = len(losses), len(planned) - 1
    if config.stage_end == "fixed" or stage == last or not config.min_stage_rounds <= done < planned[stage]:
        return tuple(planned)
    if not has_flattened(losses, window=config.plateau_rounds, improvement=config.plateau_improvement):
        return tuple(planned)
    left = planned[stage] - done
    return (*planned[:stage], done, *planned[stage + 1 : last], planned[last] + left)
