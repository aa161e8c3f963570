"""The stages of a run from its configuration: the growth, the rounds of each stage, and when a stage ends.

With `stage_end` plateau every stage except the last ends early once the mean training loss of its participants has
flattened. Let m(n) be the mean of the losses of rounds n - w + 1 .. n of the stage, w = `plateau_rounds`. It ends at the
first n with

    m(n) > (1 - `plateau_improvement`) m(n - w),    n >= 2 w,  n >= `min_stage_rounds`.

The loss of a single round is that of the few clients drawn, so means are compared. The remaining rounds go to the last
stage: a loss that is flat says nothing of the stages between.

With `stage_end` gain it ends at the first n = `gain_every`, 2 `gain_every`, ..., n >= `min_stage_rounds`, with

    a' / c' >= a / c,

where a is the alignment of the stage's submodel with the full model as it is then (`devft_jax.training.gain`), c the cost of
a client's round in the stage, and a', c' those of the next stage. The remaining rounds go to the next stage, which was found
to be worth them: it is measured in turn, and passes on those that are worth more in the stage after it.

Both rules depend only on the rounds and the state so far, so a resumed run ends its stages in the same rounds as an
uninterrupted one.
"""

from collections.abc import Iterable, Sequence

import jax

from devft_jax.config.run_config import RunConfig
from devft_jax.developmental import Growth, StageShape
from devft_jax.errors import InputError
from devft_jax.federated.algorithm import Algorithm, Clients
from devft_jax.models.architecture import ModelConfig


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


def check_stage_end(config: RunConfig, algorithm: Algorithm, model: ModelConfig) -> None:
    """Raise `InputError` if the gains that would end stages cannot be measured.

    Args:
      config: decides when stages end.
      algorithm: what clients train and send.
      model: the architecture at full depth.
    """
    if config.stage_end != "gain":
        return

    def adapted() -> set[str]:
        view = jax.eval_shape(lambda: algorithm.view(algorithm.init_server(jax.random.key(0), model, Clients(1))))
        return {*view.lora, *view.delta}

    if algorithm.personal is not None or adapted() != set(config.targets):
        raise InputError(
            f"stage_end gain measures the gradient of one model with an adapter on {','.join(config.targets)} for all "
            f"clients, and {algorithm.name} has none; use --stage-end plateau or fixed, or another algorithm."
        )
    if algorithm.pools and config.gain_cost == "bytes":
        raise InputError(
            f"gain_cost bytes has no meaning with {algorithm.name}, which sends no messages; use --gain-cost flops."
        )


def is_measured(config: RunConfig, planned: Sequence[int], stage: int, done: int) -> bool:
    """Whether it is measured after a round what the stage and the next one promise.

    Args:
      config: decides when stages end.
      planned: rounds of all stages.
      stage: the current stage, from 0.
      done: its rounds so far.
    """
    return config.stage_end == "gain" and _may_end(config, planned, stage, done) and done % config.gain_every == 0


def _may_end(config: RunConfig, planned: Sequence[int], stage: int, done: int) -> bool:
    """Whether a stage may end after so many rounds, before its planned ones: not the last, and not below the least."""
    return stage + 1 < len(planned) and config.min_stage_rounds <= done < planned[stage]


def pays(alignment: float, cost: float, *, than: tuple[float, float]) -> bool:
    """Whether a submodel promises at least as much per cost as another one; false if a promise is not finite.

    Args:
      alignment: its alignment with the full model.
      cost: what a round of it costs, positive.
      than: alignment and cost of the other one.
    """
    # A product, so that a small cost loses no digits; a NaN makes the comparison false.
    return alignment * than[1] >= than[0] * cost


def has_flattened(losses: Sequence[float], *, window: int, improvement: float) -> bool:
    """Whether the mean of the last `window` losses is less than the fraction `improvement` below that of the `window`
    before."""
    if len(losses) < 2 * window:
        return False
    last, before = sum(losses[-window:]), sum(losses[-2 * window : -window])
    return last > (1 - improvement) * before


def after_round(
    config: RunConfig, planned: Sequence[int], stage: int, losses: Sequence[float], *, next_pays: bool = False
) -> tuple[int, ...]:
    """The rounds of each stage after a round; the current stage is cut short if it ends here.

    Args:
      config: decides when stages end.
      planned: rounds of all stages before this decision.
      stage: the current stage, from 0.
      losses: losses of its rounds so far.
      next_pays: whether the next stage was found to promise at least as much per cost.
    """
    done, last = len(losses), len(planned) - 1
    if config.stage_end == "fixed" or not _may_end(config, planned, stage, done):
        return tuple(planned)
    if config.stage_end == "gain":
        ends, heir = next_pays, stage + 1
    else:
        ends = has_flattened(losses, window=config.plateau_rounds, improvement=config.plateau_improvement)
        heir = last
    if not ends:
        return tuple(planned)
    rounds = list(planned)
    rounds[stage], rounds[heir] = done, planned[heir] + planned[stage] - done
    return tuple(rounds)
