"""Costs of arms before they are run, and what follows from them: controls at a rank or length, and rounds within a budget.

Bytes are those of all clients' messages up and operations those of their training, both from the run's plan. If ranks differ
between clients or rounds, the plan gives an upper bound of the bytes: such an arm is cut by the bound, and cannot be the
target of a control. A control gets as close as whole ranks or rounds allow; of two that are equally close it takes the
larger. Its alpha is changed to keep the scale of the update.
"""

import bisect
import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from devft_jax.comparing.arms import Arm, check_arms, naming, total_rounds
from devft_jax.config.files import config_from_mapping
from devft_jax.config.methods import algorithm_of, growth_of
from devft_jax.config.run_config import RunConfig
from devft_jax.config.validation import validate
from devft_jax.errors import InputError
from devft_jax.federated.options import validate_learning_rate
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.huggingface.reading import model_architecture
from devft_jax.models.lora import narrowest_target
from devft_jax.models.options import scale_divisor
from devft_jax.planning.planner import make_plan
from devft_jax.reporting.units import BYTES, readable
from devft_jax.training.checks import check_ranks
from devft_jax.training.stages import check_composition, check_stage_end, plan_stages
from devft_jax.training.submodels import model_path

FIGURES = {"bytes": "bytes_up", "flops": "train_flops"}
"""The figure of a plan that a control makes equal, by the kind of control."""

UNKNOWN_BYTES = (
    "has ranks that differ between clients or rounds, so that only an upper bound of its bytes is known in advance"
)
"""Why an arm cannot be the target for bytes."""


@dataclass(frozen=True)
class Configured:
    """An arm with its configuration.

    Attributes:
      arm: the arm as the user wrote it.
      config: its configuration, with all of its rounds.
      note: how its rounds or rank were chosen; empty if they are the common ones.
    """

    arm: Arm
    config: RunConfig
    note: str = ""

    @property
    def rounds(self) -> int:
        """Rounds of all stages together."""
        return total_rounds(self.config)


def architecture_of(config: RunConfig) -> ModelConfig:
    """The architecture of the base that a configuration names.

    Args:
      config: an arm's configuration.
    """
    return model_architecture(model_path(config.model))


def check_stages(config: RunConfig) -> None:
    """Check that stages and ranks fit the model, and learning rates the stages.

    Args:
      config: an arm's configuration.

    Raises:
      InputError: they do not fit.
    """
    architecture = architecture_of(config)
    check_ranks(config, architecture)
    layers = architecture.layers
    growth = growth_of(config, layers)
    validate_learning_rate(config, len(plan_stages(config, growth, layers)))
    check_composition(algorithm_of(config), growth.shapes(layers) or ())
    check_stage_end(config, algorithm_of(config), architecture)


class Costs:
    """What a configuration sends and computes, before it is run: per round of each stage, over all clients.

    Args:
      config: any configuration.

    Attributes:
      bounded: whether the bytes sent are only an upper bound.

    Raises:
      InputError: the costs are known only during training, because stages end by what is measured then, or layers are
        chosen from the weights.
    """

    def __init__(self, config: RunConfig):
        # The plan refuses more participants than clients, and the number of clients may be known only from the data.
        clients = max(config.clients, config.clients_per_round)
        plan = make_plan(dataclasses.replace(config, clients=clients))
        if len(plan.stages) > 1 and config.stage_end != "fixed":
            by = "the loss" if config.stage_end == "plateau" else "gradients"
            raise InputError(
                f"stage_end '{config.stage_end}' ends stages by {by}, so that what it sends and computes is not known in "
                "advance; give --stage-end fixed, or compare by rounds alone."
            )
        self._config, self._layers = config, plan.architecture.layers
        self.bounded = "bytes_up" in plan.bounded
        self._growth = growth_of(config, self._layers)
        self._rates = {
            name: [getattr(stage, name) / stage.rounds for stage in plan.stages] for name in dict.fromkeys(FIGURES.values())
        }

    def _of(self, name: str, config: RunConfig) -> float:
        shares = plan_stages(config, self._growth, self._layers)
        return sum(share * rate for share, rate in zip(shares, self._rates[name], strict=True))

    def of(self, name: str) -> float:
        """A figure of the plan over the configuration's own rounds.

        Args:
          name: one of `FIGURES`' values.
        """
        return self._of(name, self._config)

    def smallest_round(self, name: str) -> float:
        """The figure of the round in which it is smallest.

        Args:
          name: one of `FIGURES`' values.
        """
        return min(self._rates[name])

    def by_rounds(self, name: str, most: int) -> dict[int, float]:
        """A figure of the plan over 1 to `most` rounds; numbers of rounds that are too few for the stages are left out.

        Args:
          name: one of `FIGURES`' values.
          most: the largest number of rounds.
        """
        found = {}
        for rounds in range(1, most + 1):
            with contextlib.suppress(InputError):
                found[rounds] = self._of(name, dataclasses.replace(self._config, rounds=rounds, stage_rounds=None))
        return found


def nearest(costs: Mapping[int, float], wanted: float) -> int:
    """The number whose cost is closest to `wanted`; if two are equally close, the larger.

    Args:
      costs: cost of each number.
      wanted: the cost to approach.
    """
    return min(costs, key=lambda number: (abs(costs[number] - wanted), -number))


def nearest_rank(cost: Callable[[int], float], wanted: float, most: int) -> int:
    """As `nearest`, for ranks, whose costs increase.

    Args:
      cost: cost of a rank.
      wanted: the cost to approach.
      most: the largest rank.
    """
    reached = 1 + bisect.bisect_left(range(1, most + 1), wanted, key=cost)
    return nearest({rank: cost(rank) for rank in (reached - 1, reached) if 1 <= rank <= most}, wanted)


def configure(arms: Sequence[Arm], common: RunConfig) -> list[Configured]:
    """The configuration of every arm over the common rounds, with controls at their computed rank or rounds.

    Args:
      arms: the arms as the user wrote them.
      common: the options that all arms share.

    Raises:
      InputError: an arm could not be run, or a control's target has no usable cost.
    """
    check_arms(arms)
    found = {arm.name: _own(arm, common) for arm in arms}
    for arm in arms:
        if arm.control is not None:
            assert arm.target is not None
            with naming(arm.name):
                found[arm.name] = _control(found[arm.name], found[arm.target])
    for each in found.values():
        with naming(each.arm.name):
            check_stages(each.config)
    return [found[arm.name] for arm in arms]


def _own(arm: Arm, common: RunConfig) -> Configured:
    with naming(arm.name):
        config = config_from_mapping({**arm.overrides, "algorithm": arm.algorithm, "growth": arm.growth}, common)
        validate(config)
        if total_rounds(config) != total_rounds(common):
            raise InputError(
                f"its stage_rounds {config.stage_rounds} are {total_rounds(config)} rounds and all arms have "
                f"{total_rounds(common)}; give as many."
            )
    return Configured(arm, config)


def _control(own: Configured, target: Configured) -> Configured:
    name, name_of_target = FIGURES[str(own.arm.control)], target.arm.name
    measure, config = Costs(target.config), own.config
    wanted = measure.of(name)
    if not wanted:
        raise InputError(f"'{name_of_target}' sends nothing, so there is no rank with as many bytes; leave the control out.")
    if own.arm.control == "bytes" and measure.bounded:
        raise InputError(f"'{name_of_target}' {UNKNOWN_BYTES}; leave the control out.")
    if own.arm.control == "flops":
        costs = Costs(config)
        found = costs.by_rounds(name, 1 + int(wanted / costs.smallest_round(name)))
        if not found:
            raise InputError(f"'{name_of_target}' computes less than one round of each stage does; leave the control out.")
        rounds = nearest(found, wanted)
        config = dataclasses.replace(config, rounds=rounds, stage_rounds=None)
        note = (
            f"{rounds} of {own.rounds} rounds compute {found[rounds] / wanted:.0%} of what '{name_of_target}' "
            "does, as planned"
        )
        return Configured(own.arm, config, note)

    def at_rank(rank: int) -> RunConfig:
        alpha = own.config.alpha
        # The scale is kept.
        other = dataclasses.replace(own.config, rank=rank)
        followed = alpha if alpha == "auto" else alpha * scale_divisor(other) / scale_divisor(own.config)
        return dataclasses.replace(other, alpha=followed)

    def sent(rank: int) -> float:
        return Costs(at_rank(rank)).of(name)

    if sent(1) == sent(2):
        raise InputError(
            f"what {config.algorithm} sends does not depend on rank, so no rank sends what '{name_of_target}' does."
        )
    rank = nearest_rank(sent, wanted, narrowest_target(architecture_of(config), config.targets)[0])
    share, most = sent(rank) / wanted, "at most " if Costs(at_rank(rank)).bounded else ""
    return Configured(
        own.arm, at_rank(rank), f"rank {rank} instead of {config.rank} sends {most}{share:.0%} of '{name_of_target}'"
    )


def leanest(arms: Sequence[Configured]) -> str:
    """The arm whose bytes are the budget by default: the one that sends least, but not nothing, controls excluded.

    Arms whose bytes are known only as an upper bound are not considered.

    Args:
      arms: the arms of the comparison.

    Raises:
      InputError: no arm's bytes can be a budget.
    """
    costs = {}
    for each in arms:
        if each.arm.control is None:
            with naming(each.arm.name):
                costs[each.arm.name] = Costs(each.config)
    sending = {name: cost.of("bytes_up") for name, cost in costs.items() if not cost.bounded and cost.of("bytes_up")}
    bounded = next((name for name, cost in costs.items() if cost.bounded), None)
    if not sending and bounded is not None:
        raise InputError(
            f"the budget is bytes and '{bounded}' {UNKNOWN_BYTES}; add an arm with one rank, or give --budget rounds."
        )
    if not sending:
        raise InputError("the budget is bytes and no arm sends any; give --budget rounds.")
    return min(sending, key=lambda name: sending[name])


@dataclass(frozen=True)
class Fitting:
    """Arms within a budget of bytes.

    Attributes:
      budget: bytes of all messages up.
      arms: all arms that fit, each with as many rounds as fit.
      left_out: a sentence on each arm of which no round fits.
    """

    budget: float
    arms: Sequence[Configured]
    left_out: Sequence[str]


def within_bytes(arms: Sequence[Configured], of: str) -> Fitting:
    """The arms within the bytes that one of them sends up in all its rounds.

    Args:
      arms: the arms of the comparison.
      of: name of the arm whose bytes are the budget.

    Raises:
      InputError: the arm sends nothing, or another arm's bytes are unknown or cannot be cut.
    """
    costs = {}
    for each in arms:
        with naming(each.arm.name):
            costs[each.arm.name] = Costs(each.config)
    budget = costs[of].of("bytes_up")
    if not budget:
        raise InputError(f"budget_of '{of}' sends nothing, so its bytes cannot be a budget; name an arm that sends.")
    if costs[of].bounded:
        raise InputError(f"budget_of '{of}' {UNKNOWN_BYTES}; name another arm.")
    fitting, left_out = [], []
    for each in arms:
        found = _cut(each, costs[each.arm.name], budget, of)
        if isinstance(found, str):
            left_out.append(found)
        else:
            fitting.append(found)
    return Fitting(budget, fitting, left_out)


def _cut(own: Configured, costs: Costs, budget: float, of: str) -> Configured | str:
    """The arm with the rounds that fit, or a sentence that says why none do."""
    rounds, sent = own.rounds, costs.of("bytes_up")
    most = "at most " if costs.bounded else ""

    def noted(text: str) -> str:
        return "; ".join(part for part in (own.note, text) if part)

    if own.arm.name == of:
        return dataclasses.replace(own, note=noted("its bytes are the budget"))
    if not sent:
        return dataclasses.replace(own, note=noted("sends nothing, so it has its full length"))
    if sent <= budget:
        return dataclasses.replace(
            own, note=noted(f"full length: its {rounds} rounds send {most}{sent / budget:.0%} of the budget")
        )
    with naming(own.arm.name):
        if own.config.stage_rounds is not None:
            raise InputError("stage_rounds sets its length, but a budget of bytes must be able to cut it; leave it out.")
    found = costs.by_rounds("bytes_up", rounds)
    fitting = [count for count, bytes_up in found.items() if bytes_up <= budget]
    if not fitting:
        least = readable(min(found.values()), BYTES)
        return f"{own.arm.name} is left out: its shortest run sends {least}, more than the budget."
    fewer = max(fitting)
    share = found[fewer] / budget
    config = dataclasses.replace(own.config, rounds=fewer)
    return Configured(own.arm, config, noted(f"{fewer} of {rounds} rounds fit: {most}{share:.0%} of the budget"))
