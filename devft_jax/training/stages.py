"""The stages of a run as its configuration names them: the growth, how many rounds each stage gets, and when it ends.

With `stage_end` plateau a stage but the last ends early once the mean training loss of its participants has flattened. With
m(n) the mean of the losses of rounds n - w + 1 .. n of the stage, w = `plateau_rounds`, that is at the first round n with

    m(n) > (1 - `plateau_improvement`) m(n - w),    n >= 2 w,  n >= `min_stage_rounds`.

Losses of single rounds are those of the few clients drawn, hence the means. The rule reads nothing but the rounds so far, so
a resumed run ends its stages where an uninterrupted one does.
"""

from collections.abc import Iterable, Sequence

from devft_jax.config.run_config import RunConfig
from devft_jax.developmental import Growth, StageShape
from devft_jax.errors import InputError
from devft_jax.federated.algorithm import Algorithm


def plan_stages(config: RunConfig, growth: Growth, num_layers: int) -> tuple[int, ...]:
    """Rounds of each stage: as configured, or in the shares that the growth proposes."""
    # Of configured rounds only their number is compared, so the proposal may be one of any length.
    rounds = config.rounds if config.stage_rounds is None else max(config.rounds, 10**6)
    try:
        proposed = growth.stage_rounds(rounds, num_layers)
    except ValueError as error:
        raise InputError(str(error)) from error
    if config.stage_rounds is not None:
        if proposed is not None and len(config.stage_rounds) != len(proposed):
            raise InputError(
                f"stage_rounds names {len(config.stage_rounds)} stages and the growth has {len(proposed)}; "
                "give one number of rounds per stage."
            )
        return config.stage_rounds
    if proposed is None:
        raise InputError(
            "stage_rounds is needed for a growth that does not tell its stages; give the rounds of each, such as (20, 20)."
        )
    return proposed


def check_composition(algorithm: Algorithm, stages: Iterable[StageShape]) -> None:
    """Raise `InputError` where an algorithm cannot train a stage as the growth wants it."""
    for number, stage in enumerate(stages, 1):
        kept = stage.layers - stage.trained
        if kept and not algorithm.layered:
            raise InputError(
                f"{algorithm.name} trains weights that all layers share, and the growth keeps {kept} of the {stage.layers} "
                f"layers of stage {number} from learning; choose another growth or algorithm."
            )


def has_flattened(losses: Sequence[float], *, window: int, improvement: float) -> bool:
    """Whether the mean of the last `window` losses is less than `improvement`, relatively, below that of as many before."""
    if len(losses) < 2 * window:
        return False
    last, before = sum(losses[-window:]), sum(losses[-2 * window : -window])
    return last > (1 - improvement) * before


def after_round(config: RunConfig, planned: Sequence[int], stage: int, losses: Sequence[float]) -> tuple[int, ...]:
    """The rounds of each stage as they stand after a round: the present stage is cut short if it ends here.

    Args:
      config: the ends of stages.
      planned: as they stood before, of all stages.
      stage: the present one, from 0.
      losses: of its rounds so far.
    """
    done, last = len(losses), len(planned) - 1
    if config.stage_end == "fixed" or stage == last or not config.min_stage_rounds <= done < planned[stage]:
        return tuple(planned)
    if not has_flattened(losses, window=config.plateau_rounds, improvement=config.plateau_improvement):
        return tuple(planned)
    left = planned[stage] - done
    return (*planned[:stage], done, *planned[stage + 1 : last], planned[last] + left)
